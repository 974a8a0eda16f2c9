package ledger

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestCheckStep: CockroachDB may break a long answer off because of those who write beside it. What had been read of it counts once.
func TestCheckStep(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := openDB(t, url)
		_, _, _, admin := New(db)
		conflict := &pgconn.PgError{Code: "40001", Message: "restart transaction"}
		c := &checker{report: Report{Changes: 1}}
		runs := 0
		err := admin.checkStep(t.Context(), c, func(_ context.Context, c *checker) error {
			c.report.Changes++
			c.violation("", "run %d", runs)
			if runs++; runs <= 2 {
				return fmt.Errorf("read: %w", conflict)
			}
			return nil
		})
		if db.Engine() != sqldb.Cockroach {
			if runs != 1 || !errors.Is(err, conflict) {
				t.Errorf("%d runs: %v", runs, err)
			}
			return
		}
		if err != nil || runs != 3 || c.report.Changes != 2 || len(c.report.Violations) != 1 || c.report.Violations[0].What != "run 2" {
			t.Errorf("%d runs: %v, %+v", runs, err, c.report)
		}
	})
}
