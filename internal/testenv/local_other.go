//go:build !unix

package testenv

import (
	"errors"
	"net/url"
)

// localServer is never made here: users, signals and the shell that its guard needs are those of Unix.
type localServer struct{ url *url.URL }

func (*localServer) stop() {}

func startPostgres() (*localServer, error)  { return nil, errNoLocal() }
func startCockroach() (*localServer, error) { return nil, errNoLocal() }

func errNoLocal() error { return errors.New("starting a server is not supported on this system") }
