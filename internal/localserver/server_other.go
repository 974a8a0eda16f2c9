//go:build !unix

package localserver

import (
	"errors"
	"net/url"
)

// Server is never created here: users, signals and the shell that its guard needs are those of
// Unix.
type Server struct{ url *url.URL }

// URL returns its superuser's URL.
func (s *Server) URL() *url.URL { return s.url }

// PID returns the process above all processes of the server.
func (*Server) PID() int { return 0 }

// Stop ends it.
func (*Server) Stop() {}

// PostgresPrograms finds nothing here.
func PostgresPrograms() (string, error) { return "", errNoLocal() }

// StartPostgres fails here.
func StartPostgres(PostgresConfig) (*Server, error) { return nil, errNoLocal() }

// StartCockroach fails here.
func StartCockroach() (*Server, error) { return nil, errNoLocal() }

// StartPgBouncer fails here.
func StartPgBouncer(int, ...*url.URL) (*Server, error) { return nil, errNoLocal() }

// Postgres is never created here.
type Postgres struct{ *Server }

// NewPostgres fails here.
func NewPostgres(PostgresConfig) (*Postgres, error) { return nil, errNoLocal() }

// Remove and the other methods are never called.
func (*Postgres) Remove() error  { return errNoLocal() }
func (*Postgres) Folder() string { return "" }
func (*Postgres) Start() error   { return errNoLocal() }
func (*Postgres) Halt() error    { return errNoLocal() }
func (*Postgres) Crash() error   { return errNoLocal() }

// NewStandby fails here.
func (*Postgres) NewStandby() (*Postgres, error) { return nil, errNoLocal() }

// Follow is never called.
func (*Postgres) Follow(*Postgres) error { return errNoLocal() }

func errNoLocal() error { return errors.New("starting a server is not supported on this system") }
