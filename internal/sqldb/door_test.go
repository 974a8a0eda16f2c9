package sqldb_test

import (
	"errors"
	"slices"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestWrap: whichever step of a transaction fails, InTx tells the truth about it. The error is
// transient. At the COMMIT, the outcome is unknown, unless SQLite says that its disk is full. The
// next transaction finds a connection that works.
func TestWrap(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		direct := open(t, url)
		exec(t, direct, "CREATE TABLE t (n BIGINT)")
		steps := transactionSteps(t, url)
		begin, insert, commit := 1, 1+slices.Index(steps, "INSERT INTO t"), 1+slices.Index(steps, "COMMIT")
		if direct.Engine() == sqldb.Cockroach {
			commit = 1 + slices.Index(steps, "RELEASE SAVEPOINT cockroach_restart")
		}
		for n, fault := range []testenv.Fault{
			{Step: begin}, {Step: begin, Done: true}, {Step: insert}, {Step: insert, Done: true},
			{Step: commit}, {Step: commit, Done: true},
		} {
			faults := testenv.NewFaults(fault)
			db, err := sqldb.Open(sqldb.Wrap(t.Context(), faults.Session), url, discard())
			if err != nil {
				t.Fatal(err)
			}
			faults.Arm()
			change := func() error {
				return db.InTx(t.Context(), func(tx *sqldb.Tx) error {
					return execTx(t.Context(), tx, "INSERT INTO t VALUES ($1)", n)
				})
			}
			err = change()
			made := number(t, direct, "SELECT COUNT(*) FROM t WHERE n = $1", n)
			want := int64(0)
			switch unknown := errors.Is(err, sqldb.ErrUnknownOutcome); {
			case err == nil || !sqldb.Transient(err) || unknown != (fault.Step == commit):
				t.Errorf("%s: %v", fault, err)
			case fault.Step == commit && fault.Done:
				want = 1
			}
			if made != want {
				t.Errorf("%s: %d rows, want %d (%v)", fault, made, want, err)
			}
			if err := change(); err != nil {
				t.Errorf("%s: and then: %v", fault, err)
			}
			if faults.Struck() == "" {
				t.Errorf("%s: did not come: %s", fault, faults.Steps())
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// transactionSteps returns the steps of a transaction that inserts a row.
func transactionSteps(t *testing.T, url string) []string {
	t.Helper()
	faults := testenv.NewFaults(testenv.Fault{})
	db, err := sqldb.Open(sqldb.Wrap(t.Context(), faults.Session), url, discard())
	if err != nil {
		t.Fatal(err)
	}
	faults.Arm()
	err = db.InTx(t.Context(), func(tx *sqldb.Tx) error { return execTx(t.Context(), tx, "INSERT INTO t VALUES (-1)") })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return faults.Steps()
}
