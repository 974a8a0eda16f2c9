package sqldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"modernc.org/sqlite"
)

// FuzzPositional: SQLite gives the same rows for a statement with its parameters numbered and with them by position, or no
// rows for either. SQLite's own lexer is the second opinion on where a parameter is.
func FuzzPositional(f *testing.F) {
	for _, query := range []string{
		"SELECT $1, $2", "SELECT $3,$1 , $3", "SELECT '$1', '''$1', \"$2\", [$3], `$1`, $2", "SELECT $2 -- $1\n, $1 /* $3 ' */ - $3",
		"SELECT a$1, $2-$1/$3", "SELECT 1 AS é$1, $2", "SELECT '$1", "SELECT 1 -- $1", "SELECT $1, ?", "SELECT $1, :name", "SELECT $4", "SELECT $0",
		"SELECT $01, x'41', $2", "SELECT 1.e$1", "SELECT 1$1", "SELECT $1$2", "SELECT /*/ $1 */ $2", "SELECT $1 /* $2", "SELECT 1 AS [a]], $2", "SELECT $1::x",
	} {
		f.Add(query)
	}
	connector, err := sqlite.NewConnector("file::memory:?_dqs=0")
	if err != nil {
		f.Fatal(err)
	}
	conn, err := connector.Connect(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close() })
	args := []driver.NamedValue{{Ordinal: 1, Value: "a"}, {Ordinal: 2, Value: "b"}, {Ordinal: 3, Value: "c"}}
	f.Fuzz(func(t *testing.T, query string) {
		rewritten, order := positional(query, len(args))
		used := reorder(args, order)
		// What could write, loop or read the clock is not for this test.
		if lower := strings.ToLower(query); !strings.HasPrefix(lower, "select ") || strings.ContainsAny(lower, "(;\x00") ||
			strings.Contains(lower, "current_") {
			return
		}
		want, wantErr := rowsOf(t.Context(), conn, query, args)
		got, err := rowsOf(t.Context(), conn, rewritten, used)
		if want != got || (wantErr == nil) != (err == nil) {
			t.Errorf("%q gives %s, %v\n%q gives %s, %v", query, want, wantErr, rewritten, got, err)
		}
	})
}

func rowsOf(ctx context.Context, conn driver.Conn, query string, args []driver.NamedValue) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	rows, err := conn.(driver.QueryerContext).QueryContext(ctx, query, args)
	if err != nil {
		return "", err
	}
	defer func() { _ = rows.Close() }()
	var all strings.Builder
	values := make([]driver.Value, len(rows.Columns()))
	for {
		if err := rows.Next(values); errors.Is(err, io.EOF) {
			return all.String(), nil
		} else if err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "%#v\n", values)
	}
}

// FuzzURL: no URL of a database makes us panic, what is refused is refused as a URL, in one line, and no password is quoted.
func FuzzURL(f *testing.F) {
	for _, text := range []string{
		"", "registry.db", "sqlite:data/x.db", "sqlite::memory:", "sqlite://data/x.db", "sqlite:x.db?cache=shared", "sqlite:x\x00y",
		"postgres://user:s3cr3t-word@h:5432/db", "postgres://u:s3cr3t-word@h:port/db", "postgres://u:s3cr3t-word/x@h/db",
		"postgres://u:%zzs3cr3t-word@h/db", "postgres://u:s3cr3t-word@h/db?sslmode=s3cr3t-word", "postgres://u:s3cr3t-word@h:1,x:2/db?port=1,2,3",
		"postgres://h/db?password=s3cr3t-word&connect_timeout=s3cr3t-word", "mysql://u:s3cr3t-word@h/db",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "service") || strings.Contains(text, "file") || strings.Contains(text, "cert") {
			return // names of files that would be read
		}
		err := CheckURL(text)
		if err == nil {
			return
		}
		message := err.Error()
		if !errors.Is(err, ErrURL) || strings.ContainsAny(message, "\r\n") {
			t.Errorf("%q: %q", text, message)
		}
		secrets := []string{"s3cr3t-word"}
		if u, err := url.Parse(text); err == nil {
			password, _ := u.User.Password()
			secrets = append(secrets, password, u.Query().Get("password"))
		}
		for _, secret := range secrets {
			if len(secret) >= 6 && strings.Contains(message, secret) && !strings.Contains(accepted, secret) {
				t.Errorf("%q: the error quotes the password: %s", text, message)
			}
		}
	})
}
