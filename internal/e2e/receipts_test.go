package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/streams"
)

// receipts reads the stream of receipts as it grows: it keeps no more than the last 64 of a
// service.
type receipts struct {
	mu       sync.Mutex
	distinct map[events.Nonce]map[events.Nonce]struct{} // the receipts of each request
	waiting  map[events.Nonce]chan events.Receipt
	answered int // requests
	bad      error
}

func newReceipts() *receipts {
	return &receipts{distinct: map[events.Nonce]map[events.Nonce]struct{}{}, waiting: map[events.Nonce]chan events.Receipt{}}
}

// follow reads until ctx ends.
func (r *receipts) follow(ctx context.Context, js jetstream.JetStream, trust events.Trust) error {
	consumer, err := js.OrderedConsumer(ctx, streams.Receipts, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return fmt.Errorf("read the receipts: %w", err)
	}
	iterator, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("read the receipts: %w", err)
	}
	go func() {
		defer iterator.Stop()
		for {
			msg, err := iterator.Next(jetstream.NextContext(ctx))
			if err != nil {
				return // the test is over, or the count at its end comes short
			}
			receipt, err := trust.Receipt(msg.Subject(), msg.Data())
			r.take(receipt, err)
		}
	}()
	return nil
}

func (r *receipts) take(receipt events.Receipt, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.bad = errors.Join(r.bad, err)
		return
	}
	nonces, again := r.distinct[receipt.RequestNonce]
	if !again {
		nonces = map[events.Nonce]struct{}{}
		r.distinct[receipt.RequestNonce] = nonces
		r.answered++
	}
	nonces[receipt.Nonce] = struct{}{}
	if waiting, ok := r.waiting[receipt.RequestNonce]; ok {
		delete(r.waiting, receipt.RequestNonce)
		waiting <- receipt
	}
}

// expect returns where the first receipt of a request will come.
func (r *receipts) expect(request events.Nonce) <-chan events.Receipt {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := make(chan events.Receipt, 1)
	r.waiting[request] = c
	return c
}

// count returns how many requests are answered.
func (r *receipts) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answered
}

// check holds what came against the requests that JetStream had acknowledged: each has one receipt,
// however often it was sent, and nothing else has.
func (r *receipts) check(acknowledged map[events.Nonce]struct{}) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	errs := []error{r.bad}
	for request := range acknowledged {
		if n := len(r.distinct[request]); n != 1 {
			errs = append(errs, fmt.Errorf("request %s has %d distinct receipts, want 1", request, n))
		}
	}
	if len(r.distinct) != len(acknowledged) {
		errs = append(errs, fmt.Errorf("%d requests were answered, %d were sent", len(r.distinct), len(acknowledged)))
	}
	return errors.Join(errs...)
}
