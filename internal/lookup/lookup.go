// Package lookup is a stub until the real one is merged.
package lookup

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/subscriber"
)

var (
	ErrUnknownService = subscriber.ErrUnknownService
	ErrNoRegistry     = errors.New("no registry")
)

type Registry struct {
	Conn  *nats.Conn
	Trust events.Trust
}

func (r Registry) ServiceRecord(ctx context.Context, t events.Target) (events.ServiceRecord, error) {
	return subscriber.Lookup{Conn: r.Conn, Trust: r.Trust}.ServiceRecord(ctx, t)
}
