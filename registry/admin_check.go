package registry

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/registry/internal/restore"
)

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
