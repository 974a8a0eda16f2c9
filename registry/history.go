package registry

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
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
	s, err := l.store.service(ctx, t)
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
	h.Keys, h.More, err = l.store.lines(ctx, &s.Service, part.After, part.Limit)
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

// fewChanges is how many changes are read at a time if it is not known how many are needed.
const fewChanges = 64

// lines returns the keys that a service had after a sequence, oldest first, and whether it had
// more. It ignores changes that come meanwhile: a history only grows.
func (s *Store) lines(
	ctx context.Context, one *decision.Service, after, most int64,
) (lines []events.HistoryKey, more bool, err error) {
	// At least one of two changes brings a key: a revocation is followed by a binding.
	end := min(one.Sequence, after+max(most, 2))
	changes, err := s.changes(ctx, one.ID, after, end)
	if err != nil {
		return nil, false, err
	}
	// It depends on whether the last of them brought a key or ended what there was.
	more = one.Sequence > end+1 || one.Sequence == end+1 && one.Active()
	within := len(changes)
	if changes, err = s.withEnds(ctx, one, changes, end); err != nil {
		return nil, false, err
	}
	lines = decision.HistoryLines(changes, within)
	if int64(len(lines)) > most {
		lines, more = lines[:most], true
	}
	return lines, more, nil
}

// withEnds adds the changes that may still end one of the keys before them: up to the first change
// that ends all of them, or that came when all of them had ended.
func (s *Store) withEnds(
	ctx context.Context, one *decision.Service, changes []events.Invalidation, end int64,
) ([]events.Invalidation, error) {
	latest := int64(0)
	for i := range changes {
		latest = max(latest, changes[i].GracePeriodExpiry)
	}
	for first := true; end < one.Sequence && len(changes) > 0; first = false {
		to := min(one.Sequence, end+fewChanges)
		next, err := s.changes(ctx, one.ID, end, to)
		if err != nil {
			return nil, err
		}
		for i := range next {
			e := &next[i]
			if first && i == 0 {
				latest = max(latest, e.GracePeriodExpiry) // the end of the last key
			}
			changes = append(changes, *e)
			if e.EndsEarlierKeys() || e.Timestamp >= latest {
				return changes, nil
			}
		}
		end = to
	}
	return changes, nil
}

// changes reads the changes of a service after one sequence, up to another, in their order.
func (s *Store) changes(ctx context.Context, id, after, upTo int64) ([]events.Invalidation, error) {
	list := make([]events.Invalidation, 0, max(0, upTo-after))
	err := s.each(ctx, changesOf, []any{id, after, upTo}, func(row sqldb.Row) error {
		var e events.Invalidation
		var endEarlier int64
		err := row.Scan(&e.Sequence, &e.Event, keyColumn{&e.OldKey}, keyColumn{&e.NewKey},
			&e.GracePeriodExpiry, &e.Timestamp, &endEarlier)
		e.EndEarlier = endEarlier == 1
		list = append(list, e)
		return err
	})
	return list, err
}

// changesOf reads no more rows than there are sequences between the two, whatever plan the database
// chooses.
const changesOf = `SELECT sequence, event, old_public_key, public_key, grace_period_expiry, committed_at,
	end_earlier FROM history WHERE service = $1 AND sequence > $2 AND sequence <= $3 ORDER BY sequence`

// inGrace returns the keys that are in grace at now, newest first, as the history was when the
// service was read: it only grows, so a later change does not mix into the answer. It goes back
// until a change ended all keys before it, or until several changes in a row are too old for this
// grace period and none of them has a key in grace. A key that came under a longer grace period is
// found as long as its neighbours are.
func (s *Store) inGrace(ctx context.Context, one *decision.Service, now, grace int64) (keys []events.GraceKey, err error) {
	for upTo := one.Sequence; upTo > 0; upTo -= fewChanges {
		changes, err := s.changes(ctx, one.ID, max(0, upTo-fewChanges), upTo)
		if err != nil {
			return nil, fmt.Errorf("read the keys in grace: %w", err)
		}
		done := len(changes) == 0 || changes[0].Timestamp+grace <= now
		for _, e := range slices.Backward(changes) {
			if e.Event == events.KeyRotation && e.GracePeriodExpiry > now {
				keys, done = append(keys, events.GraceKey{PublicKey: e.OldKey, Expires: e.GracePeriodExpiry}), false
			}
			if e.EndsEarlierKeys() {
				return keys, nil
			}
		}
		if done {
			break
		}
	}
	return keys, nil
}
