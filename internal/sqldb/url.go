package sqldb

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrURL is a fault that the person who wrote the database URL must correct: no other attempt with
// the same URL can succeed.
var ErrURL = errors.New("unusable database URL")

const accepted = "sqlite:PATH, or postgres://USER:PASSWORD@HOST:PORT/DATABASE with special characters percent-encoded"

func urlError(what string) error { return fmt.Errorf("%w: %s", ErrURL, what) }

// sqlitePath returns the absolute path of the file that follows "sqlite:", so that a later change
// of the working directory doesn't lead new connections to another file.
func sqlitePath(rest string) (string, error) {
	switch {
	case rest == "" || rest == ":memory:":
		return "", urlError("sqlite: needs the path of a file, as in sqlite:data/registry.db")
	case strings.HasPrefix(rest, "//") && !strings.HasPrefix(rest, "///"):
		// The author of sqlite://data/x.db more likely means data/x.db than /data/x.db, so we ask.
		return "", urlError("write sqlite:PATH for a relative path, sqlite:/PATH for an absolute one, without //")
	case strings.ContainsAny(rest, "?\x00"):
		return "", urlError("sqlite: takes the path of a file and no parameters")
	case strings.ContainsAny(rest, "\r\n"):
		return "", urlError("the path of a file has no line breaks")
	}
	path, err := filepath.Abs(rest)
	if err != nil {
		return "", fmt.Errorf("make the path of the database absolute: %w", err)
	}
	return path, nil
}

// createFile creates the file and its folder for the owner alone, because SQLite would make the
// file readable for all. SQLite gives its -wal and -shm files the mode of the database.
func createFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fileError("create the folder of the database", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fileError("open the database file", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("create the database file: %w", err)
	}
	return nil
}

// fileError returns [ErrURL] for an error about a file, unless the error may pass by itself.
func fileError(what string, err error) error {
	if exhausted(err) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return urlError(what + ": " + err.Error())
}

// parseServer reads a PostgreSQL URL. A parse error quotes the URL, or a piece of a password that
// was taken for a port, so only details from after the URL was taken apart are passed on.
func parseServer(text string) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(text)
	switch {
	case err == nil && cfg.Database == "":
		// Servers would choose one: PostgreSQL the one with the user's name, CockroachDB defaultdb.
		return nil, urlError("it names no database: add /DATABASE after the host, as in postgres://USER:PASSWORD@HOST:PORT/DATABASE")
	case err == nil:
		return cfg, nil
	}
	u, parseErr := url.Parse(text)
	if parseErr != nil {
		return nil, urlError("want " + accepted)
	}
	var parse *pgconn.ParseConfigError
	if !errors.As(err, &parse) || parse.Unwrap() == nil {
		return nil, urlError("a parameter has an invalid value; want " + accepted)
	}
	detail := parse.Unwrap().Error()
	if quotesSecret(detail, u) {
		return nil, urlError("want " + accepted)
	}
	return nil, urlError(detail)
}

func quotesSecret(text string, u *url.URL) bool {
	query := u.Query()
	password, _ := u.User.Password()
	for _, secret := range []string{password, query.Get("password"), query.Get("sslpassword")} {
		if secret != "" && strings.Contains(text, secret) {
			return true
		}
	}
	return strings.Contains(text, "://")
}

// Place names the database for the log: its engine, and its file or its servers. It has no
// credentials.
func (db *DB) Place() string {
	if db.file != "" {
		return string(db.engine) + " " + db.file
	}
	return string(db.engine) + " " + db.servers
}

// serversOf returns the hosts that a server's URL names, and the database there.
func serversOf(url string) string {
	cfg, err := parseServer(url)
	if err != nil {
		return "" // it was opened, so it could be read
	}
	address := func(host string, port uint16) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
	servers := []string{address(cfg.Host, cfg.Port)}
	for _, other := range cfg.Fallbacks { // each host may be there twice, with TLS and without
		servers = append(servers, address(other.Host, other.Port))
	}
	slices.Sort(servers)
	return strings.Join(slices.Compact(servers), ",") + "/" + cfg.Database
}
