package sqldb

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func state(code string) error { return fmt.Errorf("do something: %w", &pgconn.PgError{Code: code}) }

// standby is how a standby refuses a transaction, in the server's own language.
func standby() error {
	return &pgconn.PgError{Code: "0A000", Message: "…", Routine: "GetSerializableTransactionSnapshot"}
}

func TestTransient(t *testing.T) {
	t.Parallel()
	for _, err := range []error{
		state("40001"), state("40P01"), state("40003"), state("08006"), state("53100"), state("53300"), state("57P01"),
		state("57P02"), state("57P03"), state("57014"), state("55P03"), state("25006"), state("58030"), state("58C00"),
		driver.ErrBadConn, io.ErrUnexpectedEOF, context.DeadlineExceeded, pgconn.ErrConnClosed,
		&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, &net.DNSError{IsNotFound: true},
		fmt.Errorf("write: %w", syscall.ENOSPC), fmt.Errorf("%w: %w", ErrUnknownOutcome, io.EOF),
		standby(), fmt.Errorf("%w: %w", ErrReadOnly, pgconn.ErrReadOnlyConnection), errNoAnswer, errUnreplicated,
	} {
		if !Transient(err) {
			t.Errorf("not transient: %v", err)
		}
	}
	for _, err := range []error{
		nil, context.Canceled, errors.New("other"), sql.ErrNoRows, sql.ErrTxDone, state("23505"), state("42601"),
		state("42501"), state("28P01"), state("3D000"), state("22P02"), state("57P04"), state("0A000"), state(""), ErrURL,
	} {
		if Transient(err) {
			t.Errorf("transient: %v", err)
		}
	}
}

// TestDisconnected: what a server says itself came over a connection that works, unless it says that it stops, or stands by.
func TestDisconnected(t *testing.T) {
	t.Parallel()
	lost := []error{
		driver.ErrBadConn, io.EOF, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, &pgconn.PgError{Code: "57P01"},
		&pgconn.PgError{Code: "25006"}, standby(), fmt.Errorf("read: %w", &pgconn.PgError{Code: "08006"}),
	}
	for _, err := range lost {
		if !(&DB{engine: Postgres}).Disconnected(err) || (&DB{engine: SQLite}).Disconnected(err) {
			t.Errorf("%v", err)
		}
	}
	for _, err := range []error{nil, context.Canceled, &pgconn.PgError{Code: "53100"}, &pgconn.PgError{Code: "40001"}, sql.ErrNoRows} {
		if (&DB{engine: Postgres}).Disconnected(err) {
			t.Errorf("%v", err)
		}
	}
}

func TestConflict(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{
		state("40001"): true, state("40P01"): true, state("40003"): false, state("23505"): false, io.EOF: false,
		fmt.Errorf("%w: %w", ErrUnknownOutcome, state("40001")): false,
	} {
		if conflict(err) != want {
			t.Errorf("conflict(%v) is %v", err, !want)
		}
	}
}

func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	for _, engine := range []Engine{Postgres, Cockroach} {
		for err, want := range map[error]bool{
			state("40003"): true, state("57P01"): true, state("08006"): true, state("XX000"): true, state("58030"): true,
			io.ErrUnexpectedEOF: true, context.Canceled: true, context.DeadlineExceeded: true,
			pgconn.ErrConnClosed: true, driver.ErrBadConn: true,
			state("40001"): false, state("40P01"): false, state("23505"): false, state("25P02"): false, state("26000"): false,
			sql.ErrTxDone: false, pgx.ErrTxCommitRollback: false,
		} {
			if engine.unknownOutcome(err) != want {
				t.Errorf("%s: unknownOutcome(%v) is %v", engine, err, !want)
			}
		}
	}
	if SQLite.unknownOutcome(context.Canceled) {
		t.Error("SQLite's COMMIT has an answer also when it was interrupted")
	}
}

func TestEngineOf(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]Engine{
		"CockroachDB CCL v26.1.0 (x86_64-pc-linux-gnu, built 2026/01/01, go1.25)": Cockroach,
		"PostgreSQL 15.10 (Debian 15.10-0+deb12u1) on x86_64-pc-linux-gnu":        Postgres,
	} {
		if got := engineOf(version); got != want {
			t.Errorf("%s: got %s", version, got)
		}
	}
}

// TestAwaitSlow: an attempt that gets no answer and no error is told, while it lasts.
func TestAwaitSlow(t *testing.T) {
	t.Parallel()
	told := make(chan string, 1)
	log := slog.New(slog.NewTextHandler(toldBy(func(line string) { told <- line }), nil))
	err := await(t.Context(), log, time.Millisecond, func() error {
		select {
		case line := <-told:
			if !strings.Contains(line, "level=WARN") || !strings.Contains(line, "has not done yet what was asked") {
				t.Errorf("it says %s", line)
			}
			return nil
		case <-time.After(time.Minute):
			return errors.New("it says nothing")
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// toldBy is a writer that tells each line.
type toldBy func(line string)

func (tell toldBy) Write(line []byte) (int, error) {
	tell(string(line))
	return len(line), nil
}
