package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// Errors of the operators' work on apps and keys. Package registry exports them and the methods
// below, and explains both.
var (
	ErrAppExists      = errors.New("the app is known with another Master Key, which omi-registry app replace-master replaces")
	ErrMasterKey      = errors.New("the key is a service's key; a developer's Master Key must be another one")
	ErrUnknownApp     = errors.New("the registry does not know the app")
	ErrReplacedMaster = errors.New("the Master Key of this app was replaced, and is never accepted again")
	ErrReservedKey    = errors.New("the key was a Master Key before or is the registry's own; a developer's Master Key must be another one")
	ErrSigningKey     = errors.New("the registry's signing key is registered for someone else, who could then speak as the registry, or the registry as them")
)

// App is a developer's app: who may bind its services.
type App struct {
	AppID           events.AppID
	MasterPublicKey events.PublicKey
}

// EndedMaster is a Master Key that was replaced.
type EndedMaster struct {
	App                   events.AppID
	PublicKey, ReplacedBy events.PublicKey
	EndedAt               int64
}

// AppRecord is what the registry knows of an app.
type AppRecord struct {
	App
	AddedAt int64
	Ended   []EndedMaster // oldest first
}

// AddApp adds an app, unless [mayBeMaster] refuses its key.
func (s *Admin) AddApp(ctx context.Context, app App, now int64) error {
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
func (s *Admin) Apps(ctx context.Context) ([]App, error) {
	var apps []App
	err := s.each(ctx, "SELECT app_id, master_public_key FROM apps ORDER BY app_id", nil, func(row sqldb.Row) error {
		var app App
		err := row.Scan(text(&app.AppID), keyColumn{&app.MasterPublicKey})
		apps = append(apps, app)
		return err
	})
	return apps, err
}

// ReplaceMaster gives an app another Master Key, and returns the old one.
func (s *Admin) ReplaceMaster(ctx context.Context, app App, now int64) (old events.PublicKey, err error) {
	if err := app.MasterPublicKey.CheckStrength(); err != nil {
		return old, fmt.Errorf("replace the Master Key of %s: %w", app.AppID, err)
	}
	err = s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		if old, err = master(ctx, tx, app.AppID); err != nil || old == app.MasterPublicKey {
			return err
		}
		if err := mayBeMaster(ctx, tx, app); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO reserved_keys (public_key, app_id, replaced_by, ended_at) VALUES ($1, $2, $3, $4)",
			old.Bytes(), app.AppID.String(), app.MasterPublicKey.Bytes(), now); err != nil {
			return fmt.Errorf("end the old key: %w", err)
		}
		_, err = tx.Exec(ctx, "UPDATE apps SET master_public_key = $1 WHERE app_id = $2", app.MasterPublicKey.Bytes(), app.AppID.String())
		return err
	})
	if err != nil {
		return events.PublicKey{}, fmt.Errorf("replace the Master Key of %s: %w", app.AppID, err)
	}
	return old, nil
}

// master reads an app's Master Key, or returns [ErrUnknownApp].
func master(ctx context.Context, tx *sqldb.Tx, app events.AppID) (key events.PublicKey, err error) {
	err = tx.QueryRow(ctx, "SELECT master_public_key FROM apps WHERE app_id = $1", app.String()).Scan(keyColumn{&key})
	if errors.Is(err, sql.ErrNoRows) {
		return key, ErrUnknownApp
	}
	if err != nil {
		return key, fmt.Errorf("read the app: %w", err)
	}
	return key, nil
}

// mayBeMaster returns an error if a key can't become the app's Master Key.
func mayBeMaster(ctx context.Context, tx *sqldb.Tx, app App) error {
	var services, own, reserved int
	key := app.MasterPublicKey.Bytes()
	if err := tx.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM history WHERE public_key = $1),
		(SELECT COUNT(*) FROM reserved_keys WHERE public_key = $1 AND app_id = $2),
		(SELECT COUNT(*) FROM reserved_keys WHERE public_key = $1)`, key, app.AppID.String()).Scan(&services, &own, &reserved); err != nil {
		return fmt.Errorf("look for the Master Key: %w", err)
	}
	switch {
	case services > 0:
		return ErrMasterKey
	case own > 0:
		return ErrReplacedMaster
	case reserved > 0:
		return ErrReservedKey
	}
	return nil
}

// App returns what is known of an app, or [ErrUnknownApp].
func (s *Admin) App(ctx context.Context, id events.AppID) (AppRecord, error) {
	record := AppRecord{App: App{AppID: id}}
	err := s.db.QueryRow(ctx, "SELECT master_public_key, added_at FROM apps WHERE app_id = $1", id.String()).
		Scan(keyColumn{&record.MasterPublicKey}, &record.AddedAt)
	if errors.Is(err, sql.ErrNoRows) {
		return record, fmt.Errorf("app %s: %w", id, ErrUnknownApp)
	}
	if err == nil {
		record.Ended, err = s.EndedMasters(ctx, id)
	}
	if err != nil {
		return record, fmt.Errorf("read the app %s: %w", id, err)
	}
	// Of the keys of one second, each is followed by the one that replaced it.
	slices.SortStableFunc(record.Ended, func(a, b EndedMaster) int {
		switch {
		case a.EndedAt != b.EndedAt:
			return int(a.EndedAt - b.EndedAt)
		case a.ReplacedBy == b.PublicKey:
			return -1
		case b.ReplacedBy == a.PublicKey:
			return 1
		}
		return 0
	})
	return record, nil
}

// EndedMasters reads the Master Keys that were replaced, of these apps or of all.
func (s *Admin) EndedMasters(ctx context.Context, only ...events.AppID) ([]EndedMaster, error) {
	query, args := "SELECT app_id, public_key, replaced_by, ended_at FROM reserved_keys WHERE app_id <> ''", []any{}
	if len(only) > 0 {
		query, args = query+" AND app_id = $1", []any{only[0].String()}
	}
	list := []EndedMaster{}
	err := s.each(ctx, query, args, func(row sqldb.Row) error {
		var one EndedMaster
		err := row.Scan(text(&one.App), keyColumn{&one.PublicKey}, keyColumn{&one.ReplacedBy}, &one.EndedAt)
		list = append(list, one)
		return err
	})
	return list, err
}

// replacedMasters returns the apps whose Master Key is no longer the one that signed changes of
// these groups. PostgreSQL locks the other apps' rows until the commit: otherwise a replacement
// could be committed in between.
func (s tables) replacedMasters(ctx context.Context, tx *sqldb.Tx, groups []*decision.Group) (map[events.AppID]bool, error) {
	signedBy := map[events.AppID]events.PublicKey{}
	for g, o := range decision.Changes(groups) {
		if o.In.Request.Kind.ByMasterKey() {
			signedBy[g.Target.App] = o.Signer
		}
	}
	if len(signedBy) == 0 {
		return nil, nil
	}
	query := "SELECT app_id, master_public_key FROM apps WHERE app_id IN (%s)"
	if s.db.Engine() == sqldb.Postgres {
		query += " FOR SHARE"
	}
	replaced, names := map[events.AppID]bool{}, make([]any, 0, len(signedBy))
	for app := range signedBy {
		replaced[app], names = true, append(names, app.String())
	}
	var p sqldb.Pipeline
	s.query(&p, "read the Master Keys again", query, []sqldb.Type{sqldb.Text}, names, func(row sqldb.Row) error {
		var app App
		err := row.Scan(text(&app.AppID), keyColumn{&app.MasterPublicKey})
		if signedBy[app.AppID] == app.MasterPublicKey {
			delete(replaced, app.AppID)
		}
		return err
	})
	return replaced, tx.Run(ctx, &p)
}

// ReserveOwn reserves the registry's own keys, so that no service and no developer gets one.
// [ErrSigningKey] means that its signing key is registered already.
func (s *Admin) ReserveOwn(ctx context.Context, signing events.PublicKey, own []events.TrustedKey, log *slog.Logger) error {
	return sqldb.Await(ctx, log, func() error {
		return s.db.InTx(ctx, func(tx *sqldb.Tx) error {
			for _, k := range own {
				var taken int
				if err := tx.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM history WHERE public_key = $1) +
					(SELECT COUNT(*) FROM apps WHERE master_public_key = $1) + (SELECT COUNT(*) FROM reserved_keys WHERE public_key = $1 AND app_id <> '')`,
					k.PublicKey.Bytes()).Scan(&taken); err != nil {
					return fmt.Errorf("look for the registry's own keys: %w", err)
				}
				switch {
				case taken > 0 && k.PublicKey == signing:
					return fmt.Errorf("%w: %s is or was a service's key or a Master Key. Make another key with `omi-registry keygen`, and have it trusted", ErrSigningKey, signing)
				case taken > 0:
					log.WarnContext(ctx, "an earlier key of this registry is or was a service's key, or a Master Key", "public_key", k.PublicKey.String())
					continue
				}
				if _, err := tx.Exec(ctx, "INSERT INTO reserved_keys (public_key, app_id, ended_at) VALUES ($1, '', 0) ON CONFLICT DO NOTHING",
					k.PublicKey.Bytes()); err != nil {
					return fmt.Errorf("reserve the registry's own keys: %w", err)
				}
			}
			return nil
		})
	})
}

// Policy reads the recorded policy.
func (s *Admin) Policy(ctx context.Context) (map[string]string, error) {
	recorded := map[string]string{}
	err := s.db.Read(ctx, func() error {
		return s.each(ctx, "SELECT name, value FROM policy", nil, func(row sqldb.Row) error {
			var name, value string
			err := row.Scan(&name, &value)
			recorded[name] = value
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	return recorded, nil
}

// RecordPolicy records the settings that are not recorded yet, in one statement: if two replicas
// start at once, one of them is first. With change, it records all settings.
func (s *Admin) RecordPolicy(ctx context.Context, settings map[string]string, change bool) error {
	then := "NOTHING"
	if change {
		then = "UPDATE SET value = excluded.value"
	}
	places, values := make([]string, len(settings)), make([]any, 0, 2*len(settings))
	for i, name := range slices.Sorted(maps.Keys(settings)) { // all replicas lock in one order
		places[i] = fmt.Sprintf("($%d, $%d)", 2*i+1, 2*i+2)
		values = append(values, name, settings[name])
	}
	query := "INSERT INTO policy (name, value) VALUES " + strings.Join(places, ", ") + " ON CONFLICT (name) DO " + then
	if err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, query, values...)
		return err
	}); err != nil {
		return fmt.Errorf("record the policy: %w", err)
	}
	return nil
}
