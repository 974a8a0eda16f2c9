// Package broker runs a NATS server with JetStream inside the process: for `omi dev`, `omi demo`,
// `omi bench` and tests. In production the broker is a cluster of its own.
package broker

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// startTimeout allows for the replay of a large store; an empty one takes milliseconds.
const startTimeout = 30 * time.Second

const (
	loopback = "127.0.0.1"
	freePort = "0"
)

// Config says where a broker listens and keeps its streams.
type Config struct {
	// Addr is the host:port to listen on. Without a host it is the loopback address. With port 0 or
	// -1, or an empty Addr, the server takes a free port.
	Addr string
	// StoreDir is the folder of the streams. It is required, and no other server may use it.
	StoreDir string
	// SyncAlways makes an acknowledged message survive a power cut, not only a crash of the
	// process. It costs an fsync for each message.
	SyncAlways bool
	// MaxStore limits the bytes of all streams. 0 means three quarters of the space on the disk.
	MaxStore int64
	// Log receives the server's messages: problems as warnings, everything else for debugging. Nil
	// discards them.
	Log *slog.Logger
}

// Server is a running broker.
type Server struct {
	nats *server.Server
}

// Start starts a broker and returns when clients can connect.
func Start(cfg Config) (*Server, error) {
	opts, err := options(cfg)
	if err != nil {
		return nil, err
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("set up the broker: %w", err)
	}
	log := &logger{log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))}
	ns.SetLoggerV2(log, log.debugging(), false, false)

	// Start returns when the server listens, or has called Fatalf, which ends the process in the
	// stand-alone server.
	ns.Start()
	if err := ready(ns, log); err != nil {
		ns.Shutdown()
		ns.WaitForShutdown()
		return nil, fmt.Errorf("start the broker on %s with its streams in %s: %w", cmp.Or(cfg.Addr, loopback), cfg.StoreDir, err)
	}
	return &Server{nats: ns}, nil
}

func ready(ns *server.Server, log *logger) error {
	if err := log.fatal(); err != nil {
		return err
	}
	if !ns.ReadyForConnections(startTimeout) {
		return cmp.Or(log.fatal(), fmt.Errorf("not ready after %v", startTimeout))
	}
	return nil
}

func options(cfg Config) (*server.Options, error) {
	if cfg.StoreDir == "" {
		return nil, errors.New("set up the broker: no folder for its streams given")
	}
	host, port, err := splitAddr(cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("set up the broker: %w", err)
	}
	return &server.Options{
		Host:       host,
		Port:       port,
		JetStream:  true,
		StoreDir:   cfg.StoreDir,
		SyncAlways: cfg.SyncAlways,
		// The same as nats-server's max_file_store.
		JetStreamMaxStore: cfg.MaxStore,
		NoSigs:            true, // signals belong to the process that embeds it
		// The cache keeps the subscribers of the last 1,024 subjects. It doesn't help here: each
		// acknowledgement has a subject of its own, and each service has one or two messages.
		NoSublistCache: true,
	}, nil
}

func splitAddr(addr string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(cmp.Or(addr, net.JoinHostPort(loopback, freePort)))
	if err != nil {
		return "", 0, fmt.Errorf("read the address %q: %w", addr, err)
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < server.RANDOM_PORT || port > 1<<16-1 {
		return "", 0, fmt.Errorf("read the address %q: no such port", addr)
	}
	if port == 0 {
		port = server.RANDOM_PORT // for nats-server, 0 is its default port
	}
	return cmp.Or(host, loopback), port, nil
}

// URL returns the URL for clients.
func (s *Server) URL() string { return s.nats.ClientURL() }

// Shutdown closes the connections and the streams, and returns when everything is written and the
// port is free.
func (s *Server) Shutdown() {
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
}
