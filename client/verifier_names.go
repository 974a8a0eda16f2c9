package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/streams"
)

// receiverNames are the names that a receiver's consumers may have, one for each of its processes.
type receiverNames struct {
	receiver string // empty: any names

	have string // the name of this process's consumer; empty: none
}

// create makes a consumer by a name that no other process has. Only one goroutine calls it.
func (r *receiverNames) create(ctx context.Context, js jetstream.JetStream, cfg jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	const stream = streams.Invalidations
	if r.receiver == "" {
		return js.CreateConsumer(ctx, stream, cfg)
	}
	if r.have != "" { // otherwise it holds its name until the broker has forgotten it
		if err := js.DeleteConsumer(ctx, stream, r.have); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil, fmt.Errorf("delete the consumer %s: %w", r.have, err)
		}
		r.have = ""
	}
	// Without it, a consumer that is just the same would be shared.
	cfg.Metadata = map[string]string{"omi-reader": rand.Text()}
	for n := 1; n <= streams.ReceiverConsumers; n++ {
		cfg.Name = streams.ReceiverConsumer(r.receiver, n)
		consumer, err := js.CreateConsumer(ctx, stream, cfg)
		switch {
		case err == nil:
			r.have = cfg.Name
			return consumer, nil
		// If the name is beyond those that it may have, the broker tells the connection.
		case !errors.Is(err, jetstream.ErrConsumerExists):
			return nil, fmt.Errorf("make the consumer %s: %w", cfg.Name, err)
		}
	}
	return nil, fmt.Errorf("all consumers that the receiver %s may have are in use", r.receiver)
}
