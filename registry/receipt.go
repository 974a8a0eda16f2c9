package registry

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"sync"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

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
