package process

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"os"
	"sync"
	"time"
)

// certificate is what a process serves TLS with. It looks at its files in each handshake: to renew
// certificates, replace the files; no restart is needed.
type certificate struct {
	flags Web
	log   *slog.Logger

	mu     sync.Mutex
	read   [3]stamp // the files as they were when they were last read
	config *tls.Config
}

// stamp shows whether a file has changed.
type stamp struct {
	changed time.Time
	size    int64
}

// certificate reads the files that the flags name; it returns nil if they name none.
func (w Web) certificate(log *slog.Logger) (*certificate, error) {
	switch {
	case w.Cert == "" && w.Key == "" && w.ClientCA == "":
		return nil, nil // no certificate is no error
	case w.Cert == "" || w.Key == "":
		return nil, Usagef("--http-cert and --http-key belong together, and --http-client-ca needs both: give the certificate and its private key")
	}
	c := &certificate{flags: w, log: log}
	c.read = c.stamps()
	TendKeys(log, w.Key)
	var err error
	c.config, err = c.load()
	return c, err
}

func (c *certificate) stamps() (all [3]stamp) {
	for i, path := range []string{c.flags.Cert, c.flags.Key, c.flags.ClientCA} {
		if info, err := os.Stat(path); err == nil { // otherwise reading it gives the error
			all[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return all
}

func (c *certificate) load() (*tls.Config, error) {
	if err := checkMode("--http-key", c.flags.Key); err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(c.flags.Cert, c.flags.Key)
	if err != nil {
		return nil, Usagef("--http-cert, --http-key: %w", err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if c.flags.ClientCA == "" {
		return config, nil
	}
	text, err := os.ReadFile(c.flags.ClientCA)
	if err != nil {
		return nil, Usagef("--http-client-ca: %w", err)
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(text) {
		return nil, Usagef("--http-client-ca: %s holds no certificate in PEM", c.flags.ClientCA)
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.SessionTicketsDisabled = true // sessions would outlive client authorities
	return config, nil
}

// server returns the configuration of a server.
func (c *certificate) server() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current(), nil }}
}

// current reads the files again if they have changed. If they can't be used, it tries again at
// their next change, and serves the earlier ones until then.
func (c *certificate) current() *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.stamps()
	if now == c.read {
		return c.config
	}
	c.read = now
	config, err := c.load()
	if err != nil {
		c.log.Error("the new certificate can't be used, the one before is served on", "error", err)
		return c.config
	}
	c.config = config
	c.log.Info("the certificate was read again", "file", c.flags.Cert)
	return c.config
}
