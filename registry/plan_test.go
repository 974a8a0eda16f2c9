package registry

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// planOf returns what the database says when it is asked to explain a query.
func planOf(t *testing.T, store *Store, query string, args []any) string {
	t.Helper()
	var plan strings.Builder
	rows, err := store.db.Reader().QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s\n%v", query, err)
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	for err == nil && rows.Next() {
		line := make([]any, len(columns))
		for i := range line {
			line[i] = new(any)
		}
		err = rows.Scan(line...)
		fmt.Fprintln(&plan, *line[len(line)-1].(*any))
	}
	if err := errors.Join(err, rows.Err()); err != nil {
		t.Fatalf("%s\n%v", query, err)
	}
	return plan.String()
}
