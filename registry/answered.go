package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"golang.org/x/sync/errgroup"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/registry/internal/queue"
	"omiappreg.org/keyrotation/streams"
)

const (
	lookWithin   = 5 * time.Second // for the broker to send the receipts of a service
	looksAtATime = 32              // services whose receipts are asked for concurrently
)

// errPartly means that the broker sent some of a service's receipts and then no more.
var errPartly = errors.New("the broker did not send all receipts")

// receipts reads what the registry has told a service from the stream of receipts. No database
// keeps refusals; only that stream does.
type receipts struct {
	js    jetstream.JetStream
	trust events.Trust
	reads receiptReads // for callers over NATS
}

// told is what the stream of receipts has of one service. Nil: nothing was told.
type told struct {
	trust events.Trust
	list  []*jetstream.RawStreamMsg
	since int64 // of refusals before this second, some may be gone (Unix time)
}

// of reads what a service was told.
func (r *receipts) of(ctx context.Context, t events.Target) (*told, error) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	list, err := r.read(ctx, events.ReceiptSubject+t.String())
	// The library also reports a missing responder so.
	if errors.Is(err, jetstreamext.ErrBatchUnsupported) {
		if _, missing := r.js.Stream(ctx, streams.Receipts); errors.Is(missing, jetstream.ErrStreamNotFound) {
			return &told{since: math.MaxInt64}, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("look for the receipts of %s: %w", t, err)
	}
	one := &told{trust: r.trust, list: list}
	if most := streams.ReceiptsConfig().MaxMsgsPerSubject; int64(len(list)) >= most {
		one.since = list[0].Time.Unix() + 1
	}
	return one, nil
}

// gone returns the time before which receipts of any service may be gone because the stream is
// full; 0: none are. A stream that dropped some is still more than half full.
func (r *receipts) gone(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	stream, err := r.js.Stream(ctx, streams.Receipts)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, nil // of reports it
	}
	if err != nil {
		return 0, fmt.Errorf("look at the stream %s: %w", streams.Receipts, err)
	}
	info := stream.CachedInfo()
	if bound := info.Config.MaxBytes; bound <= 0 || info.State.FirstSeq == 1 || info.State.Bytes < uint64(bound)/2 {
		return 0, nil
	}
	return info.State.FirstTime.Unix() + 1, nil
}

func (r *receipts) read(ctx context.Context, subject string) (list []*jetstream.RawStreamMsg, err error) {
	most := 2 * int(streams.ReceiptsConfig().MaxMsgsPerSubject)
	messages, err := jetstreamext.GetBatch(ctx, r.js, streams.Receipts, most, jetstreamext.GetBatchSubject(subject))
	if err != nil {
		return nil, err
	}
	for m, err := range messages {
		if errors.Is(err, jetstreamext.ErrNoMessages) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	// The library ends without an error when the time is over.
	if len(list) == 0 || list[len(list)-1].Header.Get("Nats-Num-Pending") != "0" {
		return nil, errors.Join(errPartly, ctx.Err())
	}
	return list, nil
}

// refusal reports whether one of the receipts is a refusal by the registry that contains this text
// and is meant.
func (one *told) refusal(text string, meant func(*events.Receipt, time.Time) bool) bool {
	if one == nil {
		return false
	}
	for _, m := range one.list {
		// Few messages contain it, and only those are verified.
		if !bytes.Contains(m.Data, []byte(text)) {
			continue
		}
		r, err := one.trust.At(m.Time, 0).Receipt(m.Subject, m.Data)
		if err == nil && r.Event == events.RequestRejected && meant(&r, m.Time) {
			return true
		}
	}
	return false
}

// refused reports whether this very message was refused. The refusal has the nonce that it would
// get now. If the registry's key was another one, the refusal is of the same bytes and came after
// them.
func (one *told) refused(in *decision.Incoming, nonces decision.RefusalNonces) bool {
	hash, nonce := events.RequestHash(in.Payload), nonces.Of(in)
	return one.refusal(hash, func(r *events.Receipt, at time.Time) bool {
		return r.RequestHash == hash && (r.Nonce == nonce || at.After(in.Stored))
	})
}

// MayHaveRefused implements [decision.Refusals].
func (one *told) MayHaveRefused(nonce events.Nonce, signedAt, skew int64) bool {
	return one.since > signedAt-skew || one.refusal(nonce.String(), func(r *events.Receipt, _ time.Time) bool {
		return r.RequestNonce == nonce
	})
}

// unanswered leaves out the requests that were already refused when they were delivered before:
// their acknowledgement was lost, and a service that was told no must not be told yes. A change
// that was committed before is found in the history. If the broker doesn't answer, the requests
// come again later.
func (in *intake) unanswered(ctx context.Context, messages []*queue.Message, todo []decision.Incoming) []decision.Incoming {
	var targets []events.Target
	seen := map[events.Target]bool{}
	for i := range todo {
		if t := todo[i].Request.Target; todo[i].Redelivered && !seen[t] {
			seen[t], targets = true, append(targets, t)
		}
	}
	if len(targets) == 0 {
		return todo
	}
	found, err := in.lookUp(ctx, targets)
	if err != nil {
		in.log.Warn("can't tell which requests were answered before; requests that were delivered before wait", "error", err)
	}
	nonces := decision.NewRefusalNonces(in.key)
	var held []decision.Incoming
	left := todo[:0]
	for _, one := range todo {
		is, known := found[one.Request.Target]
		if one.Redelivered && !known {
			held = append(held, one)
			continue
		}
		if !one.Redelivered || !is.refused(&one, nonces) {
			left = append(left, one)
			continue
		}
		in.metrics.requests.WithLabelValues(string(one.Request.Kind), "answered_before").Inc()
		m := messages[one.Index]
		m.Keep()
		if err := m.Ack(); err != nil {
			in.log.Debug("acknowledge", "error", err) // it is delivered again and found again
		}
	}
	in.hold(held, messages)
	return left
}

// errReceipts means that the broker doesn't tell what a service was told. No request is to blame
// for that.
var errReceipts = errors.New("the receipts of services can't be read")

// lookUp reads what services were told. If it fails, it also returns the answers that are known.
func (in *intake) lookUp(ctx context.Context, targets []events.Target) (map[events.Target]*told, error) {
	found := make(map[events.Target]*told, len(targets))
	if in.told != nil {
		answers, err := in.told(ctx, targets)
		maps.Copy(found, answers)
		if err != nil {
			return found, fmt.Errorf("%w: %w", errReceipts, err)
		}
	}
	for _, t := range targets {
		if _, ok := found[t]; !ok {
			found[t] = nil // nothing
		}
	}
	return found, nil
}

// ofAll reads what services were told.
func (r *receipts) ofAll(ctx context.Context, targets []events.Target) (map[events.Target]*told, error) {
	gone, err := r.gone(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	found := make(map[events.Target]*told, len(targets))
	var group errgroup.Group
	group.SetLimit(looksAtATime)
	for _, t := range targets {
		group.Go(func() error {
			one, err := r.of(ctx, t)
			if err != nil {
				return err
			}
			one.since = max(one.since, gone)
			mu.Lock()
			defer mu.Unlock()
			found[t] = one
			return nil
		})
	}
	return found, group.Wait()
}

// ErrNoReceipt means that no answer to the request is kept: it was never sent, is not decided yet,
// or was refused long ago.
var ErrNoReceipt = ledger.ErrNoReceipt

// errAskedTooOften means that a service's receipts were read as often as the limit for one second
// allows.
var errAskedTooOften = errors.New("receipts are asked for too often")

// Receipt returns the answer to a request that was sent before, as it was published
// (docs/protocol.md §8.5), or [ErrNoReceipt]. If the request was committed, it returns that
// receipt, even if the request was refused before or after.
func (l *Lookup) Receipt(ctx context.Context, t events.Target, q events.ReceiptQuery) ([]byte, error) {
	receipt, err := l.store.ledger.Receipt(ctx, t, q.RequestNonce)
	if err == nil {
		return believable(receipt, t, l.receipts.trust, l.key), nil
	}
	if !errors.Is(err, ErrNoReceipt) {
		return nil, err
	}
	now := l.now().Unix()
	if !l.receipts.reads.take(now, t, 1) {
		return nil, errAskedTooOften
	}
	one, err := l.receipts.of(ctx, t)
	if err != nil {
		return nil, err
	}
	l.receipts.reads.take(now, t, len(one.list)) // their number is known only now
	if receipt = one.answer(q); receipt == nil {
		return nil, ErrNoReceipt
	}
	return receipt, nil
}

// believable returns the receipt of a committed request as readers believe it now: if the key that
// signed it has ended, its data are signed again (docs/protocol.md §7.3).
func believable(receipt []byte, t events.Target, trust events.Trust, key events.SigningKey) []byte {
	if len(trust.PublicKeys()) == len(trust.TrustedKeys()) { // none has ended
		return receipt
	}
	var refusal *events.Refusal
	_, err := trust.Receipt(events.ReceiptSubject+t.String(), receipt)
	if !errors.As(err, &refusal) || refusal.Reason != events.EndedRegistryKey {
		return receipt
	}
	again, err := events.SignReceiptAgain(receipt, key)
	if err != nil {
		return receipt
	}
	return again
}

// answer returns the answer to a question: the receipt of a committed request, or else its first
// refusal.
func (one *told) answer(q events.ReceiptQuery) (refused []byte) {
	nonce, hash, committed := []byte(q.RequestNonce.String()), []byte(q.RequestHash), []byte(events.RequestCommitted)
	for _, m := range one.list {
		// Few messages contain it, and only these are verified, even if a stranger has sent the
		// nonce with other bytes.
		if !bytes.Contains(m.Data, nonce) || !bytes.Contains(m.Data, hash) && !bytes.Contains(m.Data, committed) {
			continue
		}
		r, err := one.trust.Receipt(m.Subject, m.Data)
		switch {
		case err != nil || !q.AnsweredBy(&r):
		case r.Event == events.RequestCommitted:
			return m.Data
		case refused == nil:
			refused = m.Data
		}
	}
	return refused
}

// How many receipts are read a second, for one service and for all services. A client asks now and
// then, and only for receipts that were lost on their way.
const (
	readsOfOne = 4 * 64
	readsOfAll = 16 << 10
)

// receiptReads counts reads in the present second.
type receiptReads struct {
	mu     sync.Mutex
	second int64
	taken  map[events.Target]int
	all    int
}

// take counts n reads for a service, and reports whether they are within the limits.
func (r *receiptReads) take(second int64, t events.Target, n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.taken == nil || r.second != second {
		r.second, r.taken, r.all = second, map[events.Target]int{}, 0
	}
	if r.taken[t] >= readsOfOne || r.all >= readsOfAll {
		return false
	}
	r.taken[t] += n
	r.all += n
	return true
}

func (l *Lookup) serveReceipt(ctx context.Context, c api.Call) (api.Answer, error) {
	q, err := events.ParseReceiptQuery(c.Body)
	if err != nil {
		return api.Answer{}, err
	}
	receipt, err := lookUp(ctx, l, c, func(ctx context.Context, t events.Target) ([]byte, error) { return l.Receipt(ctx, t, q) })
	switch {
	case errors.Is(err, ErrNoReceipt):
		err = &api.Problem{
			Title: http.StatusText(http.StatusNotFound), Status: http.StatusNotFound, Detail: "No receipt of this request is kept.",
			Reason: events.UnknownRequest,
		}
	case errors.Is(err, errAskedTooOften):
		err = api.Unavailable("The receipts of this service are asked for too often; try again in a second.")
	}
	return api.Answer{Body: receipt}, err
}
