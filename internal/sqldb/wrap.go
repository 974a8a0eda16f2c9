package sqldb

import (
	"context"
	"database/sql/driver"
)

// wrapKey is the context's key of what Wrap was given.
type wrapKey struct{}

// Wrap returns a context below which [Open] passes every driver's connector through wrap before it makes a pool of it, as
// net/http/httptrace does for requests: whoever looks on sees each operation that reaches the database, whichever package
// opened it. Tests make them fail, one at a time (internal/testenv). No program uses it.
func Wrap(ctx context.Context, wrap func(driver.Connector) driver.Connector) context.Context {
	return context.WithValue(ctx, wrapKey{}, wrap)
}

func wrapped(ctx context.Context, connector driver.Connector) driver.Connector {
	if wrap, ok := ctx.Value(wrapKey{}).(func(driver.Connector) driver.Connector); ok {
		return wrap(connector)
	}
	return connector
}
