package registry

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/schema"
	"omiappreg.org/keyrotation/streams"
)

// Store is the registry's database: SQLite, PostgreSQL or CockroachDB, with one set of statements.
type Store struct {
	db *sqldb.DB
}

// ErrURL means that a database URL can't be used, or that the database belongs to another process.
var ErrURL = sqldb.ErrURL

// OpenStore opens the database that url names and brings its schema up to date. It waits for a
// server that is not up yet. An unusable URL, or a database that belongs to another process, is
// [ErrURL].
func OpenStore(ctx context.Context, url string, log *slog.Logger) (*Store, error) {
	return prepared(ctx, url, log, (*sqldb.DB).Migrate)
}

// OpenExisting is [OpenStore] for tools that look into the database of a registry, which may be
// running and of another version. It doesn't change the schema. A schema of another version is
// [ErrURL].
func OpenExisting(ctx context.Context, url string, log *slog.Logger) (*Store, error) {
	return prepared(ctx, url, log, (*sqldb.DB).Check)
}

func prepared(
	ctx context.Context, url string, log *slog.Logger, prepare func(*sqldb.DB, context.Context, sqldb.Owner, fs.FS) error,
) (*Store, error) {
	db, err := sqldb.Open(ctx, url, log)
	if err != nil {
		return nil, fmt.Errorf("open the registry's database: %w", err)
	}
	if err := sqldb.Await(ctx, log, func() error { return prepare(db, ctx, sqldb.Registry, schema.Registry()) }); err != nil {
		return nil, errors.Join(fmt.Errorf("open the registry's database: %w", err), db.Close())
	}
	return &Store{db}, nil
}

// Close closes the database.
func (s *Store) Close() error { return s.db.Close() }

// Ping reports whether the database can be used now: it reads from each table that every request
// needs.
func (s *Store) Ping(ctx context.Context) error {
	return s.db.Ping(ctx, "apps WHERE app_id = ''", "services WHERE id = 0", "history WHERE service = 0 AND sequence = 0",
		"outbox WHERE batch = 0 AND position = 0", "stream_positions WHERE stream = '"+streams.Invalidations+"'")
}

// Errors that an operator's command can return.
var (
	ErrAppExists = errors.New("the app is known with another Master Key, which omi-registry app replace-master replaces")
	ErrMasterKey = errors.New("the key is a service's key; a developer's Master Key must be another one")
)

// App is a developer's app: who may bind its services.
type App struct {
	AppID           events.AppID     `json:"app_id"`
	MasterPublicKey events.PublicKey `json:"master_public_key"`
}

// AddApps adds apps for a process that starts: it waits while the database is unavailable. Its
// errors are those of [Store.AddApp], but a replaced Master Key is no error: an outdated list must
// not keep the registry from starting.
func (s *Store) AddApps(ctx context.Context, apps []App, now int64, log *slog.Logger) error {
	for _, app := range apps {
		err := sqldb.Await(ctx, log, func() error { return s.AddApp(ctx, app, now) })
		if errors.Is(err, ErrReplacedMaster) {
			log.WarnContext(ctx, "the list of apps names a Master Key that was replaced; this entry is ignored: correct the list",
				"app_id", app.AppID.String(), "public_key", app.MasterPublicKey.String())
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// AddApp adds an app. Adding it again with the same Master Key changes nothing. Another Master Key
// is [ErrAppExists], or [ErrReplacedMaster] if it was the app's before. A weak key is
// [events.ErrWeakKey], a service's key [ErrMasterKey], and another app's earlier key or the
// registry's own key [ErrReservedKey].
func (s *Store) AddApp(ctx context.Context, app App, now int64) error {
	if err := app.MasterPublicKey.CheckStrength(); err != nil {
		return fmt.Errorf("add app %s: %w", app.AppID, err)
	}
	err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		have, err := master(ctx, tx, app.AppID)
		if err != nil && !errors.Is(err, ErrUnknownApp) || have == app.MasterPublicKey {
			return err
		}
		unknown := err != nil
		if err := mayBeMaster(ctx, tx, app); err != nil {
			return err
		}
		if !unknown {
			return ErrAppExists
		}
		_, err = tx.Exec(ctx, "INSERT INTO apps (app_id, master_public_key, added_at) VALUES ($1, $2, $3)",
			app.AppID.String(), app.MasterPublicKey.Bytes(), now)
		return err
	})
	if err != nil {
		return fmt.Errorf("add app %s: %w", app.AppID, err)
	}
	return nil
}

// Apps returns the apps, sorted by id.
func (s *Store) Apps(ctx context.Context) ([]App, error) {
	var apps []App
	err := s.each(ctx, "SELECT app_id, master_public_key FROM apps ORDER BY app_id", nil, func(row sqldb.Row) error {
		var app App
		if err := row.Scan(text(&app.AppID), keyColumn{&app.MasterPublicKey}); err != nil {
			return err
		}
		apps = append(apps, app)
		return nil
	})
	return apps, err
}

// unhurried returns the store for work that reads whole tables.
func (s *Store) unhurried() *Store {
	copied := *s
	copied.db = s.db.Unhurried()
	return &copied
}

// each runs a query outside a transaction, row by row.
func (s *Store) each(ctx context.Context, query string, args []any, row func(sqldb.Row) error) error {
	var p sqldb.Pipeline
	p.Query("query", query, args, row)
	return s.db.Run(ctx, &p)
}

// eachPart is each for a query over rows of these columns, which replace its %s.
func (s *Store) eachPart(ctx context.Context, query string, types []sqldb.Type, values []any, row func(sqldb.Row) error) error {
	var p sqldb.Pipeline
	s.query(&p, "query", query, types, values, row)
	return s.db.Run(ctx, &p)
}

// query adds such a query to a pipeline.
func (s *Store) query(p *sqldb.Pipeline, what, query string, types []sqldb.Type, values []any, row func(sqldb.Row) error) {
	for part := range s.db.Engine().Rows(1, types, values) {
		p.Query(what, fmt.Sprintf(query, part.Query), part.Args, row)
	}
}

// eachPartAgain is eachPart for a query that [sqldb.DB.Read] may run again: row must accept the
// same rows once more.
func (s *Store) eachPartAgain(ctx context.Context, query string, types []sqldb.Type, values []any, row func(sqldb.Row) error) error {
	return s.db.Read(ctx, func() error { return s.eachPart(ctx, query, types, values, row) })
}

// keyColumn scans a public key. NULL is no key.
type keyColumn struct{ key *events.PublicKey }

// Scan implements sql.Scanner.
func (c keyColumn) Scan(v any) (err error) {
	switch v := v.(type) {
	case nil:
		*c.key = events.PublicKey{}
	case []byte:
		*c.key, err = events.PublicKeyFromBytes(v)
	default:
		err = fmt.Errorf("a public key can't be read from %T", v)
	}
	return err
}

// textColumn scans a value that has a text form.
type textColumn[T any] struct {
	into  *T
	parse func(string) (T, error)
}

// Scan implements sql.Scanner.
func (c textColumn[T]) Scan(v any) (err error) {
	var s string
	switch v := v.(type) {
	case string:
		s = v
	case []byte:
		s = string(v)
	default:
		return fmt.Errorf("a text can't be read from %T", v)
	}
	*c.into, err = c.parse(s)
	return err
}

func text(id *events.AppID) sql.Scanner     { return textColumn[events.AppID]{id, events.ParseAppID} }
func target(t *events.Target) sql.Scanner   { return textColumn[events.Target]{t, events.ParseTarget} }
func nonceText(n *events.Nonce) sql.Scanner { return textColumn[events.Nonce]{n, events.ParseNonce} }
func times(list *[]int64) sql.Scanner       { return textColumn[[]int64]{list, parseTimes} }

// keyBytes returns the value of a key's column.
func keyBytes(k events.PublicKey) any {
	if k.IsZero() {
		return nil
	}
	return k.Bytes()
}

// parseTimes and formatTimes keep a few times in one column, as numbers separated by spaces.
func parseTimes(s string) ([]int64, error) {
	var list []int64
	for field := range strings.FieldsSeq(s) {
		t, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

func formatTimes(list []int64) string {
	var b []byte
	for _, t := range list {
		b = append(strconv.AppendInt(b, t, 10), ' ')
	}
	return string(b)
}

var errOtherType = errors.New("the value has another type")

// ReadApps reads a JSON array of apps from a file. Without a path there are no apps.
func ReadApps(path string) ([]App, error) {
	if path == "" {
		return nil, nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var apps []App
	if err := json.Unmarshal(content, &apps, json.RejectUnknownMembers(true)); err != nil {
		// Its own text names Go types.
		if semantic := (*json.SemanticError)(nil); errors.As(err, &semantic) {
			err = fmt.Errorf("%s: %w", cmp.Or(semantic.JSONPointer, "/"), cmp.Or(semantic.Err, errOtherType))
		}
		return nil, fmt.Errorf("%s is not a JSON array of {\"app_id\": …, \"master_public_key\": …}: %w", path, err)
	}
	for i, app := range apps {
		if app.AppID.IsZero() || app.MasterPublicKey.IsZero() {
			return nil, fmt.Errorf("%s: entry %d lacks its app_id or master_public_key", path, i+1)
		}
	}
	return apps, nil
}
