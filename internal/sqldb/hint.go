package sqldb

import (
	"context"
	"crypto/sha256"
	"database/sql/driver"
	"fmt"

	"modernc.org/sqlite"
)

// hintBytes make it hard to find two texts with one hint, and next to impossible to find many.
const hintBytes = 6

// Hint shortens a text to a few bytes, which nearly always tell it from others: an index of hints is a third of one of names.
// Whoever looks a text up by it compares the text too. SQLite knows it as the function omi_hint.
func Hint(text string) []byte {
	sum := sha256.Sum256([]byte(text))
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
		text, ok := args[0].(string)
		if !ok {
			return nil, fmt.Errorf("omi_hint takes a text, and got a %T", args[0])
		}
		return Hint(text), nil
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
