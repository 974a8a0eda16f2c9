package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/registry/internal/restore"
)

// Admin is the operators' work on a registry's database. It may be used while registries run.
type Admin struct{ store *Store }

// Admin returns the operators' work on this database.
func (s *Store) Admin() *Admin { return &Admin{s} }

// Errors that the operators' work can return.
var (
	ErrAppExists      = ledger.ErrAppExists
	ErrMasterKey      = ledger.ErrMasterKey
	ErrUnknownApp     = ledger.ErrUnknownApp
	ErrReplacedMaster = ledger.ErrReplacedMaster
	ErrReservedKey    = ledger.ErrReservedKey
	ErrSigningKey     = ledger.ErrSigningKey
	// ErrNoDeadLetter means that no dead letter has this id: it never existed, or it is decided by
	// now.
	ErrNoDeadLetter = ledger.ErrNoDeadLetter
)

// App is a developer's app: who may bind its services.
type App struct {
	AppID           events.AppID     `json:"app_id"`
	MasterPublicKey events.PublicKey `json:"master_public_key"`
}

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

// AddApp adds an app. Adding it again with the same Master Key changes nothing. Another Master Key
// is [ErrAppExists], or [ErrReplacedMaster] if it was the app's before. A weak key is
// [events.ErrWeakKey], a service's key [ErrMasterKey], and another app's earlier key or the
// registry's own key [ErrReservedKey]. now is in seconds since the Unix epoch.
func (a *Admin) AddApp(ctx context.Context, app App, now int64) error {
	return a.store.admin.AddApp(ctx, ledger.App(app), now)
}

// AddApps adds apps for a process that starts: it waits while the database is unavailable. Its
// errors are those of [Admin.AddApp], but a replaced Master Key is no error: an outdated list must
// not keep the registry from starting.
func (a *Admin) AddApps(ctx context.Context, apps []App, now int64, log *slog.Logger) error {
	for _, app := range apps {
		err := sqldb.Await(ctx, log, func() error { return a.AddApp(ctx, app, now) })
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

// Apps returns the apps, sorted by id.
func (a *Admin) Apps(ctx context.Context) ([]App, error) {
	list, err := a.store.admin.Apps(ctx)
	return listOf(list, func(one ledger.App) App { return App(one) }), err
}

// App returns what is known of an app, or [ErrUnknownApp].
func (a *Admin) App(ctx context.Context, id events.AppID) (AppRecord, error) {
	record, err := a.store.admin.App(ctx, id)
	return AppRecord{
		App: App(record.App), AddedAt: record.AddedAt,
		Ended: listOf(record.Ended, func(one ledger.EndedMaster) EndedMaster { return EndedMaster(one) }),
	}, err
}

// ReplaceMaster gives an app another Master Key. From the commit on, the old key can't sign for the
// app any more. It returns the old key. If the new key is the app's already, nothing changes, and
// it returns that key. now is in seconds since the Unix epoch.
//
// It returns [ErrUnknownApp] for an unknown app, [ErrReservedKey] for a key that was a Master Key
// before or is the registry's own, [ErrMasterKey] for a key that a service has, and
// [events.ErrWeakKey] for a weak key.
func (a *Admin) ReplaceMaster(ctx context.Context, app App, now int64) (old events.PublicKey, err error) {
	return a.store.admin.ReplaceMaster(ctx, ledger.App(app), now)
}

// DeadLetter is a request that could not be decided: the code panics on it, or fails on it while it
// decides others. It waits in the database until an operator has it decided again.
type DeadLetter struct {
	ID             string `json:"id"`
	Subject        string `json:"subject"`
	StreamSequence uint64 `json:"stream_sequence"`
	// StreamCreatedAt is when the stream was created, nanoseconds since the Unix epoch; 0: not
	// known.
	StreamCreatedAt int64 `json:"stream_created_at,omitzero"`
	// StoredAt is when JetStream stored it, seconds since the Unix epoch.
	StoredAt int64  `json:"stored_at"`
	Reason   string `json:"reason"` // panic or error
	Detail   string `json:"detail"`
	Tries    int    `json:"tries"`
	// SetAsideAt is when it was set aside or failed again, seconds since the Unix epoch.
	SetAsideAt int64 `json:"set_aside_at"`
	// Retrying means that a registry was asked to decide it again, and has not done so yet.
	Retrying bool   `json:"retrying"`
	Payload  []byte `json:"payload,omitzero"`
}

// DeadLetters returns up to limit dead letters, the oldest first, without their payloads.
func (a *Admin) DeadLetters(ctx context.Context, limit int) ([]DeadLetter, error) {
	list, err := a.store.letters.List(ctx, limit)
	return listOf(list, func(one ledger.DeadLetter) DeadLetter { return DeadLetter(one) }), err
}

// DeadLetter returns one dead letter with its payload, or [ErrNoDeadLetter].
func (a *Admin) DeadLetter(ctx context.Context, id string) (DeadLetter, error) {
	one, err := a.store.letters.Get(ctx, id)
	return DeadLetter(one), err
}

// RetryDeadLetters asks for dead letters to be decided again. A running registry does so within a
// second or two. If one of the ids does not exist, it returns [ErrNoDeadLetter] and asks for
// nothing.
func (a *Admin) RetryDeadLetters(ctx context.Context, ids []string, now time.Time) error {
	return a.store.letters.Retry(ctx, ids, now)
}

// RetryAllDeadLetters asks for all dead letters to be decided again, and returns their ids, oldest
// first.
func (a *Admin) RetryAllDeadLetters(ctx context.Context, now time.Time) ([]string, error) {
	return a.store.letters.RetryAll(ctx, now)
}

// CheckPolicy returns [ErrOtherPolicy] with each setting that differs if the database records
// another policy. It changes nothing. A database without a record has no other policy.
func (a *Admin) CheckPolicy(ctx context.Context, p Policy) error {
	p, err := p.WithDefaults()
	if err != nil {
		return err
	}
	recorded, err := a.store.admin.Policy(ctx)
	if err != nil {
		return err
	}
	return p.mustBe(recorded)
}

// AwaitPolicy is [Admin.CheckPolicy] for a process that starts: it waits while the database is
// unavailable.
func (a *Admin) AwaitPolicy(ctx context.Context, p Policy, log *slog.Logger) error {
	return sqldb.Await(ctx, log, func() error { return a.CheckPolicy(ctx, p) })
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

// Violation is something in the database that must never happen.
type Violation struct {
	Target string `json:"target,omitzero"` // empty: not about one service
	What   string `json:"what"`
}

// Report is what [Admin.Check] found.
type Report struct {
	Services int `json:"services"`
	Changes  int `json:"changes"`
	Outbox   int `json:"outbox"` // changes whose messages wait to be published
	// DeadLetters are requests that could not be decided and wait for an operator. They are not
	// violations.
	DeadLetters int         `json:"dead_letters"`
	Violations  []Violation `json:"violations"`
}

// Check verifies what must always hold in the database (docs/reliability.md, Guarantees): each
// service's history has no gap and no repeat, each change follows from the one before it, the
// present state is the last change, receipts answer what was committed, and nothing waits in the
// outbox for long. It only reads, and may run while registries run: it then sees each service as it
// was when the check came to it.
//
// With a trust in the registry's keys, it verifies the receipts' signatures too.
func (a *Admin) Check(ctx context.Context, trust *events.Trust, now time.Time) (Report, error) {
	return a.check(ctx, trust, nil, nil, now)
}

func (a *Admin) check(
	ctx context.Context, trust *events.Trust, content *ledger.StreamContent, found []ledger.Violation, now time.Time,
) (Report, error) {
	r, err := a.store.admin.Check(ctx, trust, content, now)
	return Report{
		Services: r.Services, Changes: r.Changes, Outbox: r.Outbox, DeadLetters: r.DeadLetters,
		Violations: listOf(append(found, r.Violations...), func(v ledger.Violation) Violation { return Violation(v) }),
	}, err
}

// CheckWithStream is [Admin.Check], and also compares the database with the stream of events. The
// stream must have no event that the database lacks, none with another nonce, and the last 64
// events of each service, unless garbage or repetitions on its subject have pushed out the oldest
// of them. The check ignores what is committed while it runs.
//
// It reads the stream from its start. It needs some 100 bytes of memory for each service.
func (a *Admin) CheckWithStream(
	ctx context.Context, js jetstream.JetStream, trust events.Trust, now time.Time, log *slog.Logger,
) (Report, error) {
	content, found, err := restore.Content(ctx, js, a.store.ledger, trust, now, log)
	if err != nil {
		return Report{Violations: []Violation{}}, fmt.Errorf("check: %w", err)
	}
	return a.check(ctx, &trust, content, found, now)
}
