package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	dialTimeout  = 5 * time.Second
	maxConns     = 16
	connLifetime = 30 * time.Minute // spreads the connections anew after a CockroachDB node joined or came back
	connIdleTime = 5 * time.Minute
	// idleTxTimeout, seconds on the server: a process that lost its power inside a transaction would else hold its
	// locks against every other replica for as long as the server's TCP believes in it, which is hours.
	idleTxTimeout = "idle_in_transaction_session_timeout"
	warnEvery     = 10 * time.Second
)

func openServer(ctx context.Context, url string, log *slog.Logger) (*DB, error) {
	cfg, err := serverConfig(url)
	if err != nil {
		return nil, err
	}
	_, custom := cfg.RuntimeParams[idleTxTimeout]
	connector := stdlib.GetConnector(*cfg, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		if custom {
			return nil
		}
		// Not a parameter of the startup message, which PgBouncer would refuse.
		if _, err := conn.Exec(ctx, "SET "+idleTxTimeout+" = '30s'"); err != nil {
			return fmt.Errorf("set %s: %w", idleTxTimeout, err)
		}
		return nil
	}))
	pool := sql.OpenDB(wrapped(ctx, connector))
	pool.SetMaxOpenConns(maxConns)
	pool.SetMaxIdleConns(maxConns)
	pool.SetConnMaxLifetime(connLifetime)
	pool.SetConnMaxIdleTime(connIdleTime)

	version, err := awaitServer(ctx, pool, log)
	if err != nil {
		return nil, errors.Join(err, pool.Close())
	}
	return &DB{engine: engineOf(version), reader: pool, writer: pool, log: log}, nil
}

// engineOf tells the servers apart by the answer to "select version()".
func engineOf(version string) Engine {
	if strings.HasPrefix(version, "CockroachDB") {
		return Cockroach
	}
	return Postgres
}

// serverConfig reads the URL and sets what it leaves open.
//
// Statements here vary in length with the size of a batch, so pgx's default of preparing each text and keeping 512 of
// them on every connection would prepare again and again, and fill the server's memory. In mode "exec" a statement is
// one round trip that leaves nothing behind, which also suits connection poolers and load balancers. The price is that
// pgx derives the types of parameters from the Go values: int64, string, []byte and bool are right by themselves.
func serverConfig(url string) (*pgx.ConnConfig, error) {
	cfg, err := parseServer(url)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(url, "default_query_exec_mode=") {
		cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = dialTimeout
		dialer := net.Dialer{
			Timeout: dialTimeout,
			// A server that vanished without a word is noticed after half a minute.
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		}
		cfg.DialFunc = dialer.DialContext
	}
	return cfg, nil
}

// awaitServer asks the server for its version until it answers, refuses for good, or ctx ends.
func awaitServer(ctx context.Context, pool *sql.DB, log *slog.Logger) (string, error) {
	pause := pauses(100*time.Millisecond, 3*time.Second)
	var warned time.Time
	for {
		var version string
		err := pool.QueryRowContext(ctx, "SELECT version()").Scan(&version)
		if err == nil {
			if !warned.IsZero() {
				log.InfoContext(ctx, "the database answers")
			}
			return version, nil
		}
		if mend := refusal(err); mend != nil {
			return "", mend
		}
		if ctx.Err() != nil || !Transient(err) {
			return "", fmt.Errorf("connect to the database: %w", err)
		}
		if time.Since(warned) >= warnEvery {
			warned = time.Now()
			log.WarnContext(ctx, "waiting for the database", "error", err)
		}
		if err := sleep(ctx, pause.NextBackOff(), err); err != nil {
			return "", fmt.Errorf("connect to the database: %w", err)
		}
	}
}

// refusal returns how to mend what the server will go on refusing, nil if err is something else.
func refusal(err error) error {
	var answer *pgconn.PgError
	switch {
	case !errors.As(err, &answer):
		return nil
	case strings.HasPrefix(answer.Code, "28"):
		return fmt.Errorf("%w: give a user and password that the server accepts: %w", ErrURL, answer)
	case answer.Code == "3D000":
		return fmt.Errorf("%w: create this database (CREATE DATABASE), or name another: %w", ErrURL, answer)
	default:
		return nil
	}
}
