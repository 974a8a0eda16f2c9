package registryclient

import (
	"context"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
)

// Current is a [Registry] for a process whose trust may change while it runs: it calls Trust for
// each question.
type Current struct {
	Conn  *nats.Conn
	Trust func() events.Trust
}

func (c *Current) registry() Registry { return Registry{Conn: c.Conn, Trust: c.Trust()} }

// ServiceRecord is [Registry.ServiceRecord].
func (c *Current) ServiceRecord(ctx context.Context, target events.Target) (events.ServiceRecord, error) {
	return c.registry().ServiceRecord(ctx, target)
}

// HistoryPart is [Registry.HistoryPart].
func (c *Current) HistoryPart(ctx context.Context, target events.Target, after int64) (events.ServiceHistory, error) {
	return c.registry().HistoryPart(ctx, target, after)
}

// Key is [Registry.Key].
func (c *Current) Key(ctx context.Context, key events.PublicKey) (events.KeyRecord, error) {
	return c.registry().Key(ctx, key)
}
