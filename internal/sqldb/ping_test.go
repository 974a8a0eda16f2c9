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

// TestPing: it says what a server lacks that answers. TestReadOnly has one that takes no writes.
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

// TestPingReads: it reads what is needed. A lock stands for a range of CockroachDB without a
// quorum.
func TestPingReads(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.Postgres)
	db := open(t, url)
	if err := db.Migrate(t.Context(), sqldb.Billing, files(firstFiles())); err != nil {
		t.Fatal(err)
	}
	exec(t, db, "CREATE TABLE needed (n BIGINT)")
	const needed, migrations = "needed WHERE n = 1", "goose_db_version WHERE id = 1"
	unlock := testenv.Lock(t, url, "needed")
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := db.Ping(short, migrations, needed); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a locked table: %v", err)
	}
	if err := db.Ping(t.Context(), migrations); err != nil {
		t.Errorf("with another table locked: %v", err)
	}
	unlock()
	if err := db.Ping(t.Context(), migrations, needed); err != nil {
		t.Errorf("with no row in the table: %v", err)
	}
	exec(t, db, "ALTER TABLE needed RENAME TO away")
	if err := db.Ping(t.Context(), migrations, needed); !errors.Is(err, sqldb.ErrNoTables) {
		t.Errorf("without the table: %v", err)
	}
	exec(t, db, "DELETE FROM goose_db_version")
	if err := db.Ping(t.Context(), migrations); !errors.Is(err, sqldb.ErrNoTables) {
		t.Errorf("emptied: %v", err)
	}
}
