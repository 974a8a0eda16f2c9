package health

import (
	"context"
	"errors"

	"omiappreg.org/keyrotation/internal/refusal"
)

// Connected is a connection to the broker.
type Connected interface {
	refusal.Limited
	IsConnected() bool
}

// Connection is the part [Broker].
func Connection(conn Connected) Part {
	return Part{Name: Broker, Check: func(context.Context) error {
		if !conn.IsConnected() {
			return errors.New("the broker is away")
		}
		return refusal.Limits(conn)
	}}
}

// Pinged is the part [Database]. What is wrong with it is in its own words for the log alone.
func Pinged(db interface{ Ping(context.Context) error }) Part {
	return Part{Name: Database, Check: func(ctx context.Context) error {
		err := db.Ping(ctx)
		if err == nil || ctx.Err() != nil { // no answer in time has words of its own
			return err
		}
		return Because(err, "the database is away")
	}}
}
