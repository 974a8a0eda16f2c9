package health

import (
	"context"
	"errors"

	"omiappreg.org/keyrotation/internal/refusal"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// Connected is a connection to the broker.
type Connected interface {
	refusal.Limited
	IsConnected() bool
}

// Connection returns the part [Broker].
func Connection(conn Connected) Part {
	return Part{Name: Broker, Check: func(context.Context) error {
		if !conn.IsConnected() {
			return errors.New("the broker is away")
		}
		return refusal.Limits(conn)
	}}
}

// Pinged returns the part [Database]. Only the log gets the database's own words, unless the
// database can't be used any more.
func Pinged(db interface{ Ping(context.Context) error }) Part {
	return Part{Name: Database, Check: func(ctx context.Context) error {
		switch err := db.Ping(ctx); {
		case err == nil:
			return nil
		case errors.Is(err, sqldb.ErrReplaced):
			return &Problem{Text: sqldb.ErrReplaced.Error(), Cause: err, Restart: true}
		case errors.Is(err, sqldb.ErrFault):
			return Because(err, sqldb.ErrCorrupt.Error())
		case errors.Is(err, sqldb.ErrReadOnly):
			return Because(err, "the database takes no writes: "+
				"its server is a standby, or default_transaction_read_only is on")
		case errors.Is(err, sqldb.ErrBusy):
			return Because(err, "all sessions with the database are in use, and wait for it")
		case errors.Is(err, sqldb.ErrNoTables):
			return Because(err, "the database's tables are gone, or hidden from its role")
		case ctx.Err() != nil:
			return Because(err, "the database does not answer in time")
		default:
			return Because(err, "the database is away")
		}
	}}
}
