package sqldb_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestPing: the error says that all sessions are in use. TestReadOnly has a server that takes no
// writes.
func TestPing(t *testing.T) {
	t.Parallel()
	db := open(t, testenv.Database(t, testenv.Postgres))
	if err := db.Migrate(t.Context(), sqldb.Billing, files(firstFiles())); err != nil {
		t.Fatal(err)
	}
	if err := db.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	var conns []*sql.Conn
	for db.Writer().Stats().InUse < db.Writer().Stats().MaxOpenConnections {
		conn, err := db.Writer().Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := db.Ping(short); !errors.Is(err, sqldb.ErrBusy) {
		t.Errorf("all sessions in use: %v", err)
	}
	for _, conn := range conns {
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPingReads: a ping reads what is needed. A lock imitates a range of CockroachDB that has lost
// its quorum.
func TestPingReads(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.Postgres)
	db := open(t, url)
	if err := db.Migrate(t.Context(), sqldb.Billing, files(firstFiles())); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "CREATE TABLE needed (n BIGINT)")
	const needed, owner = "needed WHERE n = 1", "database_owner WHERE id = 1"
	unlock := testenv.Lock(t, url, "needed")
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := db.Ping(short, owner, needed); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a locked table: %v", err)
	}
	if err := db.Ping(t.Context(), owner); err != nil {
		t.Errorf("with another table locked: %v", err)
	}
	unlock()
	if err := db.Ping(t.Context(), owner, needed); err != nil {
		t.Errorf("with no row in the table: %v", err)
	}
	exec(t, db, "ALTER TABLE needed RENAME TO away")
	if err := db.Ping(t.Context(), owner, needed); !errors.Is(err, sqldb.ErrNoTables) {
		t.Errorf("without the table: %v", err)
	}
	exec(t, db, "DELETE FROM database_owner")
	if err := db.Ping(t.Context(), owner); !errors.Is(err, sqldb.ErrNoTables) {
		t.Errorf("emptied: %v", err)
	}
}
