package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
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
	var pooled atomic.Bool
	first := serverPool(ctx, cfg, "", func(ctx context.Context, conn *pgx.Conn) error {
		yes, err := behindPooler(ctx, conn)
		pooled.Store(yes)
		return err
	})
	var engine Engine
	err = Await(ctx, log, func() (err error) {
		engine, err = askServer(ctx, first)
		return err
	})
	if err := errors.Join(err, first.Close()); err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	switch {
	case engine != Postgres || execModeChosen(url):
	case pooled.Load():
		log.InfoContext(ctx, "the database is behind a connection pooler: statements are not prepared, which costs CPU", "otherwise",
			execMode+"cache_statement in the URL, if the pooler keeps the prepared statements of each client")
	default:
		// The texts of statements are few there, see Rows, and prepared once for each connection.
		cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	}
	pool := serverPool(ctx, cfg, engine, nil)
	return &DB{engine: engine, reader: pool, writer: pool, log: log}, nil
}

// behindPooler says whether somebody stands between us and PostgreSQL who shares its connections among clients. The next
// transaction may then be on another one, without what was prepared. Poolers have to tell cancellations apart, so they make up
// the process id that the server would give to the client.
func behindPooler(ctx context.Context, conn *pgx.Conn) (bool, error) {
	var pid int64
	if err := conn.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
		return false, fmt.Errorf("ask for the server's process id: %w", err)
	}
	return pid != int64(conn.PgConn().PID()), nil
}

// serverPool makes a pool of connections to an engine; "": it is not known yet. look, if it is not nil, sees each new connection.
//
// Only the answer to "select version()" tells the engines apart: behind a pooler, CockroachDB's parameter crdb_version does not
// come through.
func serverPool(ctx context.Context, cfg *pgx.ConnConfig, engine Engine, look func(context.Context, *pgx.Conn) error) *sql.DB {
	_, custom := cfg.RuntimeParams[idleTxTimeout]
	connector := stdlib.GetConnector(*cfg, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		// Not parameters of the startup message, which PgBouncer would refuse.
		var settings []string
		if !custom {
			settings = append(settings, idleTxTimeout+" = '30s'")
		}
		if engine == Postgres {
			settings = append(settings, planByIndex()...)
		}
		for _, setting := range settings {
			if _, err := conn.Exec(ctx, "SET "+setting); err != nil {
				return fmt.Errorf("set %s: %w", setting, err)
			}
		}
		if look != nil {
			return look(ctx, conn)
		}
		return nil
	}))
	pool := sql.OpenDB(wrapped(ctx, serverConnector{connector, engine}))
	pool.SetMaxOpenConns(maxConns)
	pool.SetMaxIdleConns(maxConns)
	pool.SetConnMaxLifetime(connLifetime)
	pool.SetConnMaxIdleTime(connIdleTime)
	return pool
}

// planByIndex are settings of PostgreSQL's that make it find rows by their index whatever the number of rows. It keeps the plan
// of a prepared statement, and one that is made while a table is empty reads the whole table: it goes on so until the
// table is analyzed, when it may have millions of rows. What really reads a whole table still does; that it costs much
// then by PostgreSQL's own count must not make it compile the plan.
//
// Nor is a statement planned anew for the very values that it gets: with an array of one row that looks cheaper than the plan
// that is kept, which is for ten rows and the same, so it would be done every time, and costs more than to run it.
func planByIndex() []string {
	return []string{
		"enable_seqscan = off", "enable_hashjoin = off", "enable_mergejoin = off", "jit = off",
		"plan_cache_mode = force_generic_plan",
	}
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
// The statements that CockroachDB gets vary in length with the size of a batch, so pgx's default of preparing each text and
// keeping 512 of them on every connection would prepare again and again, and fill the server's memory. In mode "exec" a
// statement is one round trip that leaves nothing behind; pgx derives the types of parameters from the Go values: int64,
// string, []byte and bool are right by themselves. With PostgreSQL only the first connection is of that mode, and all of them
// behind a connection pooler, which may not keep what is prepared. The URL can ask for any mode.
func serverConfig(url string) (*pgx.ConnConfig, error) {
	cfg, err := parseServer(url)
	if err != nil {
		return nil, err
	}
	if !execModeChosen(url) {
		cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
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

// execMode is the parameter of a URL.
const execMode = "default_query_exec_mode="

func execModeChosen(url string) bool { return strings.Contains(url, execMode) }

// askServer asks the server which it is, and CockroachDB whether it has the database: it lets one connect to any, and refuses what
// needs one.
func askServer(ctx context.Context, pool *sql.DB) (Engine, error) {
	var version string
	if err := pool.QueryRowContext(ctx, "SELECT version()").Scan(&version); err != nil {
		return "", err
	}
	engine := engineOf(version)
	if engine != Cockroach {
		return engine, nil
	}
	var name string
	var has bool
	const query = `SELECT current_database(), EXISTS (SELECT 1 FROM pg_catalog.pg_database WHERE datname = current_database())`
	if err := pool.QueryRowContext(ctx, query).Scan(&name, &has); err != nil {
		return "", fmt.Errorf("look for the database: %w", err)
	}
	if !has {
		return "", &pgconn.PgError{Severity: "ERROR", Code: noSuchDatabase, Message: fmt.Sprintf("database %q does not exist", name)}
	}
	return engine, nil
}

// noSuchDatabase is a SQLSTATE.
const noSuchDatabase = "3D000"

// refusal returns how to correct what the server will go on refusing, nil if err is something else.
func refusal(err error) error {
	var answer *pgconn.PgError
	switch {
	case errors.Is(err, ErrURL):
		return nil
	case !errors.As(err, &answer):
		if uncertified(err) {
			return fmt.Errorf("%w: the server's certificate is not trusted: name its authority by sslrootcert=FILE in the URL: %w", ErrURL, err)
		}
		return nil
	case strings.HasPrefix(answer.Code, "28"):
		return fmt.Errorf("%w: give a user and password that the server accepts: %w", ErrURL, answer)
	case answer.Code == noSuchDatabase:
		return fmt.Errorf("%w: create this database (CREATE DATABASE), or name another: %w", ErrURL, answer)
	case connecting(err) && answer.Code == insufficientPrivilege:
		return fmt.Errorf("%w: grant this user the right to connect to the database: %w", ErrURL, answer)
	case connecting(err) && finalState(answer.Code):
		return fmt.Errorf("%w: the server refuses such a connection: %w", ErrURL, answer)
	default:
		return nil
	}
}
