package registry

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
)

// A history has a line for each key, anyone may ask for it, and each line must be read and signed.
// All callers share these bounds, so a flood of them costs a part of one core.
const (
	linesASecond   = 25_000
	linesBurst     = 8 * events.HistoryPart
	historyWaits   = time.Second // for a turn, before the caller is told to come again
	historyAtLeast = 32          // lines that each question counts as
)

// gate bounds the questions for histories.
type gate struct {
	free  chan struct{} // holds a token for each history that is being read
	lines *rate.Limiter
}

func newGate() *gate {
	return &gate{
		free:  make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/4)),
		lines: rate.NewLimiter(linesASecond, linesBurst),
	}
}

// enter waits briefly for a turn. The caller must call leave afterwards.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, historyWaits)
	defer cancel()
	select {
	case g.free <- struct{}{}:
		return func() { <-g.free }, nil
	case <-ctx.Done():
		return nil, busy()
	}
}

// charge waits briefly until so many lines may be read.
func (g *gate) charge(ctx context.Context, lines int64) error {
	ctx, cancel := context.WithTimeout(ctx, historyWaits)
	defer cancel()
	if g.lines.WaitN(ctx, int(max(historyAtLeast, min(lines, events.HistoryPart)))) != nil {
		return busy()
	}
	return nil
}

func busy() error {
	p := api.Unavailable("The registry is asked for very many histories; try again in a second.")
	p.RetryAfter = 1
	return p
}

// History returns keys that the service had (docs/protocol.md §8.4), or [ErrUnknownService]. It
// fails as [Lookup.Service] does. Of a long history it reads a part.
func (l *Lookup) History(
	ctx context.Context, t events.Target, part events.HistoryRange,
) (events.ServiceHistory, error) {
	s, err := l.store.ledger.Service(ctx, t)
	if err := l.mayAnswer(err, t, func() int64 { return s.Sequence }); err != nil {
		return events.ServiceHistory{}, err
	}
	if !part.Part && s.Sequence > 2*events.HistoryPart { // at least one of two changes brings a key
		return events.ServiceHistory{}, tooLong()
	}
	if err := l.histories.charge(ctx, min(s.Sequence-part.After, part.Limit)); err != nil {
		return events.ServiceHistory{}, err
	}
	h := events.ServiceHistory{
		Origin: l.policy.Load().Origin, AppID: t.App, ServiceID: t.Service,
		Sequence: s.Sequence, Timestamp: l.now().Unix(),
	}
	h.Keys, h.More, err = l.store.ledger.Lines(ctx, &s.Service, part.After, part.Limit)
	if err != nil {
		return h, fmt.Errorf("read the history of %s: %w", t, err)
	}
	if h.More && !part.Part {
		return h, tooLong()
	}
	return h, nil
}

func tooLong() error {
	return api.TooLarge("The service had more than " + strconv.Itoa(events.HistoryPart) +
		" keys. Ask for its history in parts; the first part is the one after 0.")
}

func (l *Lookup) serveHistory(ctx context.Context, c api.Call) (api.Answer, error) {
	question, err := historyQuestion(c)
	if err != nil {
		return api.Answer{}, err
	}
	part, err := events.ParseHistoryQuery(question)
	if err != nil {
		return api.Answer{}, err
	}
	leave, err := l.histories.enter(ctx)
	if err != nil {
		return api.Answer{}, err
	}
	defer leave()
	history, err := lookUp(ctx, l, c, func(ctx context.Context, t events.Target) (events.ServiceHistory, error) {
		return l.History(ctx, t, part)
	})
	if err != nil {
		return api.Answer{}, err
	}
	return api.Answer{Body: history.Sign(l.key)}, nil
}

// historyQuestion returns the question of docs/protocol.md §8.4. Over HTTP it is in the parameters
// of the URL.
func historyQuestion(c api.Call) ([]byte, error) {
	var members []string
	for _, name := range [...]string{"after", "limit"} {
		if !c.Parameters.Has(name) {
			continue
		}
		n, err := strconv.ParseUint(c.Parameters.Get(name), 10, 53)
		if err != nil {
			return nil, api.BadRequest(events.InvalidField,
				"The parameter "+name+" must be an integer from 0 to 2^53-1.")
		}
		members = append(members, fmt.Sprintf("%q:%d", name, n))
	}
	if members == nil {
		return c.Body, nil
	}
	return []byte("{" + strings.Join(members, ",") + "}"), nil
}
