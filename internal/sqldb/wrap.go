package sqldb

import (
	"context"
	"database/sql/driver"
)

// wrapKey is the context key of Wrap's function.
type wrapKey struct{}

// Wrap returns a context that gives [Open] a hook: Open passes each driver's connector through wrap
// before it makes a pool of it. A test sees every operation that reaches the database this way,
// whichever package opened it, and can make each of them fail (internal/testenv).
// net/http/httptrace does the same for requests. No program uses it.
func Wrap(ctx context.Context, wrap func(driver.Connector) driver.Connector) context.Context {
	return context.WithValue(ctx, wrapKey{}, wrap)
}

func wrapped(ctx context.Context, connector driver.Connector) driver.Connector {
	if wrap, ok := ctx.Value(wrapKey{}).(func(driver.Connector) driver.Connector); ok {
		return wrap(connector)
	}
	return connector
}
