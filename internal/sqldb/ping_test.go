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
	exec(t, db, "ALTER TABLE goose_db_version RENAME TO away")
	if err := db.Ping(t.Context()); !errors.Is(err, sqldb.ErrNoTables) {
		t.Errorf("without tables: %v", err)
	}
}
