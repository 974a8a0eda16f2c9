package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// The operator replaces a Master Key that leaked or was lost:
//
// 	replace-master ──▶ apps: the new key; reserved_keys: the old one, for ever
// 	                        ▲
// 	decide: by the key that was read ──▶ commit: if it is still the app's key ──▶ stands
// 	                                        └── otherwise ──▶ decided again
//
// No registry remembers a Master Key between batches, so the new one counts from the commit of its
// replacement on.

// Errors about Master Keys and the registry's own keys.
var (
	ErrUnknownApp     = errors.New("the registry does not know the app")
	ErrReplacedMaster = errors.New("the Master Key of this app was replaced, and is never accepted again")
	ErrReservedKey    = errors.New("the key was a Master Key before or is the registry's own; a developer's Master Key must be another one")
	ErrSigningKey     = errors.New("the registry's signing key is registered for someone else, who could then speak as the registry, or the registry as them")
)

// EndedMaster is a Master Key that was replaced.
type EndedMaster struct {
	App        events.AppID     `json:"app_id"`
	PublicKey  events.PublicKey `json:"public_key"`
	ReplacedBy events.PublicKey `json:"replaced_by"`
	EndedAt    int64            `json:"ended_at"`
}

// AppRecord is what the registry knows of an app.
type AppRecord struct {
	App
	AddedAt int64         `json:"added_at"`
	Ended   []EndedMaster `json:"ended_master_keys"` // oldest first
}

// ReplaceMaster gives an app another Master Key. From the commit on, the old key can't sign for the
// app any more. It returns the old key. If the new key is the app's already, nothing changes, and
// it returns that key.
//
// It returns [ErrUnknownApp] for an unknown app, [ErrReservedKey] for a key that was a Master Key
// before or is the registry's own, [ErrMasterKey] for a key that a service has, and
// [events.ErrWeakKey] for a weak key.
func (s *Store) ReplaceMaster(ctx context.Context, app App, now int64) (old events.PublicKey, err error) {
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
func (s *Store) App(ctx context.Context, id events.AppID) (AppRecord, error) {
	record := AppRecord{App: App{AppID: id}}
	err := s.db.QueryRow(ctx, "SELECT master_public_key, added_at FROM apps WHERE app_id = $1", id.String()).
		Scan(keyColumn{&record.MasterPublicKey}, &record.AddedAt)
	if errors.Is(err, sql.ErrNoRows) {
		return record, fmt.Errorf("app %s: %w", id, ErrUnknownApp)
	}
	if err == nil {
		record.Ended, err = s.endedMasters(ctx, id)
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

// endedMasters reads the Master Keys that were replaced, of these apps or of all.
func (s *Store) endedMasters(ctx context.Context, only ...events.AppID) ([]EndedMaster, error) {
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
func (s *Store) replacedMasters(ctx context.Context, tx *sqldb.Tx, groups []*decision.Group) (map[events.AppID]bool, error) {
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

// reserveOwn reserves the registry's own keys, so that no service and no developer gets one.
// [ErrSigningKey] means that its signing key is registered already.
func (s *Store) reserveOwn(ctx context.Context, signing events.PublicKey, own []events.TrustedKey, log *slog.Logger) error {
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

// followMasters reports each Master Key that is replaced while this registry runs, in the log and
// by a notice to all subscribers, until ctx ends. Nothing depends on either.
func (r *Registry) followMasters(ctx context.Context) {
	tick := time.NewTicker(policyEvery)
	defer tick.Stop()
	var known map[EndedMaster]bool // nil: nothing was read yet
	for {
		list, err := r.cfg.Store.endedMasters(ctx)
		if err == nil {
			for _, one := range list {
				if known != nil && !known[one] {
					r.tellReplaced(one)
				}
			}
			known = make(map[EndedMaster]bool, len(list))
			for _, one := range list {
				known[one] = true
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (r *Registry) tellReplaced(one EndedMaster) {
	r.cfg.Log.Warn("the Master Key of an app was replaced: what the old one signs is refused from now on",
		"app_id", one.App.String(), "old_public_key", one.PublicKey.String(), "public_key", one.ReplacedBy.String())
	notice := events.Notice{
		Origin: r.cfg.Policy.Origin, App: one.App, Event: events.MasterKeyReplaced,
		OldKey: one.PublicKey, NewKey: one.ReplacedBy, Timestamp: one.EndedAt,
	}
	if err := r.cfg.Conn.PublishMsg(&nats.Msg{Subject: notice.Subject(), Data: notice.Sign(r.cfg.Key)}); err != nil {
		r.cfg.Log.Debug("publish a notice", "error", err) // it is only a hint
	}
}
