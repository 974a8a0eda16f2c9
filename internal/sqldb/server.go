package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
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
	maxUnhurried = 4
	// connLifetime: spreads the connections again after a CockroachDB node joined or came back.
	connLifetime = 30 * time.Minute
	// connIdleTime is less than the time after which a proxy drops an idle connection, such as
	// HAProxy's 50 s: if a connection is found dead, all sessions are replaced, and the registry
	// compares its database.
	connIdleTime = 30 * time.Second
	warnEvery    = 10 * time.Second
	// unacknowledged is how long data may be on its way to a server without an acknowledgement. A
	// keep-alive may go unanswered for as long.
	unacknowledged = 30 * time.Second
)

// server is what connections to a server are made with.
type server struct {
	engine  Engine // "": not known yet
	cfg     *pgx.ConnConfig
	chosen  map[string]string // settings that the URL has chosen, see chosen
	pooled  bool              // a pooler shares the server's sessions among clients
	session *sessions
}

func openServer(ctx context.Context, url string, log *slog.Logger) (*DB, error) {
	return openServerWithin(ctx, url, usual(), log)
}

func openServerWithin(ctx context.Context, url string, l limits, log *slog.Logger) (*DB, error) {
	cfg, err := serverConfig(url)
	if err != nil {
		return nil, err
	}
	s := server{cfg: cfg, chosen: chosen(cfg.RuntimeParams), session: &sessions{}}
	if err := s.look(ctx, log); err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	switch {
	case s.engine != Postgres || execModeChosen(url):
	case s.pooled:
		log.InfoContext(ctx, "the database is behind a connection pooler: statements are not prepared, which costs CPU", "otherwise",
			execMode+"cache_statement in the URL, if the pooler keeps the prepared statements of each client")
	default:
		// The texts of statements are few there, see Rows, and each connection prepares them once.
		cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement
	}
	pool, patient := s.pool(l), s.pool(unhurried())
	patient.SetMaxOpenConns(maxUnhurried)
	patient.SetMaxIdleConns(1)
	return &DB{engine: s.engine, reader: pool, writer: pool, unhurried: patient, sessions: s.session, servers: serversOf(url), log: log}, nil
}

// look waits for the server, and asks which engine it is and whether it is behind a pooler.
func (s *server) look(ctx context.Context, log *slog.Logger) error {
	var seen atomic.Pointer[sight]
	connector := stdlib.GetConnector(*s.cfg, stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		one, err := lookAt(ctx, conn)
		seen.Store(&one)
		return err
	}))
	first := poolOf(serverConnector{Connector: connector, sessions: s.session, limits: usual()})
	err := Await(ctx, log, func() (err error) {
		s.engine, err = askServer(ctx, &DB{reader: first})
		return err
	})
	if err := errors.Join(err, first.Close()); err != nil {
		return err
	}
	s.pooled = seen.Load().pooled
	return s.checkPooler(seen.Load().searchPath)
}

// sight is what a connection shows about the way to the server.
type sight struct {
	pooled     bool
	searchPath string // of a session without settings
}

// lookAt finds out whether a pooler stands between us and PostgreSQL and shares its connections
// among clients. The next transaction may then run on another connection, without the statements
// that were prepared. Poolers must tell cancellations apart, so they invent the process id that the
// server would give to the client.
func lookAt(ctx context.Context, conn *pgx.Conn) (sight, error) {
	var pid int64
	var path string
	if err := conn.QueryRow(ctx, "SELECT pg_backend_pid(), current_setting('search_path')").Scan(&pid, &path); err != nil {
		return sight{}, fmt.Errorf("ask for the server's process id: %w", err)
	}
	return sight{pid != int64(conn.PgConn().PID()), path}, nil
}

// checkPooler refuses what can't be made right: a mode in which pgx prepares or describes
// statements before the transaction is told in which schema their tables are, if the server gives
// the pooler's sessions another schema.
func (s *server) checkPooler(path string) error {
	mode := s.cfg.DefaultQueryExecMode
	if !s.pooled || s.engine != Postgres || mode == pgx.QueryExecModeExec || mode == pgx.QueryExecModeSimpleProtocol {
		return nil
	}
	for _, want := range usual().wanted(s.engine, s.chosen, s.cfg.RuntimeParams["options"]) {
		if want.name == searchPath && want.value != path {
			return urlError(fmt.Sprintf("with %s%s behind a pooler, sessions have the search_path %s, and it has to be %s: "+
				"use %sexec, or ALTER ROLE … SET search_path", execMode, mode, path, want.value, execMode))
		}
	}
	return nil
}

// pool returns a pool of connections whose sessions have these limits and the settings that this
// package relies on, see settings.
func (s *server) pool(l limits) *sql.DB {
	cfg := s.cfg.Copy()
	connector := serverConnector{sessions: s.session, limits: l}
	wanted := l.wanted(s.engine, s.chosen, cfg.RuntimeParams["options"])
	if s.pooled && s.engine == Postgres {
		connector.told = told(s.engine, wanted, true)
	} else {
		cfg.AfterConnect = tell(told(s.engine, wanted, false))
	}
	connector.Connector = stdlib.GetConnector(*cfg)
	return poolOf(connector)
}

func poolOf(connector serverConnector) *sql.DB {
	pool := sql.OpenDB(connector)
	pool.SetMaxOpenConns(maxConns)
	pool.SetMaxIdleConns(maxConns)
	pool.SetConnMaxLifetime(connLifetime)
	pool.SetConnMaxIdleTime(connIdleTime)
	return pool
}

// engineOf tells the servers apart by their answer to "select version()".
func engineOf(version string) Engine {
	if strings.HasPrefix(version, "CockroachDB") {
		return Cockroach
	}
	return Postgres
}

// serverConfig reads the URL and sets what it leaves open.
//
// The statements for CockroachDB vary in length with the size of a batch. pgx's default, preparing
// each text and keeping 512 of them on every connection, would prepare again and again, and fill
// the server's memory. In mode "exec" a statement is one round trip that leaves nothing behind; pgx
// derives the types of parameters from the Go values, which is right for int64, string, []byte and
// bool. With PostgreSQL only the first connection has that mode, and all of them behind a
// connection pooler, which may not keep prepared statements. The URL can choose any mode.
func serverConfig(url string) (*pgx.ConnConfig, error) {
	cfg, err := parseServer(url)
	if err != nil {
		return nil, err
	}
	if !execModeChosen(url) {
		cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	for name, value := range startupParameters() {
		// For example, PGTZ is timezone.
		maps.DeleteFunc(cfg.RuntimeParams, func(other, _ string) bool { return strings.EqualFold(other, name) })
		cfg.RuntimeParams[name] = value
	}
	if cfg.ValidateConnect == nil && !strings.Contains(url, targetAttrs+"=") && os.Getenv("PGTARGETSESSIONATTRS") == "" {
		cfg.ValidateConnect = mustWrite
	}
	cfg.OnNotice = notice
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = dialTimeout
	}
	dialer := net.Dialer{
		Timeout: cfg.ConnectTimeout,
		Control: giveUp(unacknowledged),
		// A server that vanished without a word is noticed after half a minute.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
	cfg.DialFunc = dialer.DialContext
	return cfg, nil
}

// targetAttrs is the URL parameter that says which kind of server to connect to.
const targetAttrs = "target_session_attrs"

// execMode is the parameter of a URL.
const execMode = "default_query_exec_mode="

func execModeChosen(url string) bool { return strings.Contains(url, execMode) }

// askServer asks which engine the server is, and whether a CockroachDB has the database:
// CockroachDB accepts connections to any name, and refuses statements that need the database.
func askServer(ctx context.Context, db *DB) (Engine, error) {
	var version string
	if err := db.QueryRow(ctx, "SELECT version()").Scan(&version); err != nil {
		return "", err
	}
	engine := engineOf(version)
	if engine != Cockroach {
		return engine, nil
	}
	var name string
	var has bool
	const query = `SELECT current_database(), EXISTS (SELECT 1 FROM pg_catalog.pg_database WHERE datname = current_database())`
	if err := db.QueryRow(ctx, query).Scan(&name, &has); err != nil {
		return "", fmt.Errorf("look for the database: %w", err)
	}
	if !has {
		return "", &pgconn.PgError{Severity: "ERROR", Code: noSuchDatabase, Message: fmt.Sprintf("database %q does not exist", name)}
	}
	return engine, nil
}

// noSuchDatabase is a SQLSTATE.
const noSuchDatabase = "3D000"

// refusal returns how to correct what the server will go on refusing; nil if err is something else.
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
	case connecting(err) && wantsTLS(answer):
		return fmt.Errorf("%w: the server asks for TLS: use sslmode=verify-full and sslrootcert=FILE in the URL: %w", ErrURL, answer)
	case connecting(err) && answer.Code == insufficientPrivilege:
		return fmt.Errorf("%w: grant this user the right to connect to the database: %w", ErrURL, answer)
	case connecting(err) && finalState(answer.Code):
		return fmt.Errorf("%w: the server refuses such a connection: %w", ErrURL, answer)
	default:
		return nil
	}
}
