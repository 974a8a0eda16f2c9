package sqldb

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"fmt"

	"modernc.org/sqlite"
)

// hintBytes make it hard to find a value with another one's hint (2^48 tries), and that many times harder to find many.
const hintBytes = 6

// Hint shortens a value to a few bytes, which nearly always tell it from others: an index of hints is a third of one of names.
// Whoever looks a value up by it compares the value too. They are bytes of a hash and not the value's own, which its owner
// chooses. SQLite knows it as the function omi_hint.
func Hint[T string | []byte](value T) []byte {
	sum := sha256.Sum256([]byte(value))
	return sum[:hintBytes]
}

// hintingConnector makes SQLite's connections, which know omi_hint. A driver of our own keeps it from all others in the process.
type hintingConnector struct {
	driver *sqlite.Driver
	dsn    string
}

func newHintingConnector(dsn string) (driver.Connector, error) {
	d := &sqlite.Driver{}
	err := d.RegisterDeterministicScalarFunction("omi_hint", 1, func(_ *sqlite.FunctionContext, args []driver.Value) (driver.Value, error) {
		switch value := args[0].(type) {
		case string:
			return Hint(value), nil
		case []byte:
			return Hint(value), nil
		default:
			return nil, fmt.Errorf("omi_hint takes a text or bytes, and got a %T", value)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("register omi_hint: %w", err)
	}
	return hintingConnector{d, dsn}, nil
}

// Connect implements [driver.Connector].
func (c hintingConnector) Connect(context.Context) (driver.Conn, error) { return c.driver.Open(c.dsn) }

// Driver implements [driver.Connector].
func (c hintingConnector) Driver() driver.Driver { return c.driver }
