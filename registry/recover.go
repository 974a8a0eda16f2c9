package registry

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/restore"
)

// Errors of a registry whose database may lack changes that it announced.
var (
	// ErrComparing means that the database is being compared with the stream of events, and nothing
	// is served until that is done.
	ErrComparing = restore.ErrComparing
	// ErrBehind means that the database lacks the last changes of a service: it was restored from
	// an older backup.
	ErrBehind = restore.ErrBehind
)

// RecoverHint says how changes that the database lacks are brought back.
const RecoverHint = restore.RecoverHint

// Recovery says how to recover changes that a database lacks. All members except DryRun and UpTo
// are required.
type Recovery struct {
	JetStream jetstream.JetStream
	// Trust is whose events and receipts are believed: the registry's own keys.
	Trust events.Trust
	// Key signs stand-ins for receipts that are gone.
	Key events.SigningKey
	// DryRun reads and reports, but writes nothing.
	DryRun bool
	// UpTo ignores what the stream of events has behind this place, such as events that came after
	// a dry run. 0: nothing is ignored.
	UpTo uint64
	Log  *slog.Logger
}

// Recovered is what [Admin.Recover] did, and what it could not do.
type Recovered struct {
	DryRun   bool `json:"dry_run"`
	Messages int  `json:"messages"` // messages of the stream that were compared with the database
	Changes  int  `json:"changes"`  // changes that the database lacked, and has now
	Services int  `json:"services"` // the services of these changes
	// WithoutReceipt is how many of the changes have a stand-in for their receipt and their
	// request's nonce.
	WithoutReceipt int `json:"without_receipt"`
	// UpTo is the last place of the stream that was compared.
	UpTo uint64 `json:"up_to"`
	// Signers are the keys whose signatures the changes rest on.
	Signers []Signer `json:"signers"`
	// Refused is how many messages no trusted key signed.
	Refused int `json:"refused"`
	// AfterEnd is how many messages a key signed after its end. They don't count.
	AfterEnd int `json:"after_end"`
	// UnknownApps are apps that the database does not know although changes of their services were
	// recovered.
	UnknownApps []events.AppID `json:"unknown_apps"`
	// Gaps are services whose next change is no longer in the stream.
	Gaps []Gap `json:"gaps"`
	// Conflicts are changes that contradict the database.
	Conflicts []Conflict `json:"conflicts"`
	// IssuedTwice are sequences for which the stream has another event than the database.
	IssuedTwice []Conflict `json:"issued_twice"`
}

// Complete reports whether nothing is left to do.
func (r *Recovered) Complete() bool {
	return len(r.Gaps)+len(r.Conflicts)+len(r.IssuedTwice)+r.Refused == 0
}

// Gap is a service whose history can't be continued from the stream.
type Gap struct {
	Target string `json:"target"`
	Has    int64  `json:"has"`  // the last sequence in the database
	Next   int64  `json:"next"` // the first one after it in the stream
	Last   int64  `json:"last"` // the last one in the stream
}

// Conflict is an event that can't become part of the history.
type Conflict struct {
	Target   string `json:"target"`
	Sequence int64  `json:"sequence"`
	What     string `json:"what"`
}

// Signer is a key of the registry whose signatures recovered changes rest on.
type Signer struct {
	PublicKey events.PublicKey `json:"public_key"`
	// Earlier means that the registry no longer signs with this key. If the key was stolen and
	// given no end, the changes may be forged.
	Earlier bool `json:"earlier"`
	Changes int  `json:"changes"`
	// Newest are the last of these changes in the stream, up to a limit.
	Newest []SignedChange `json:"newest"`
}

// SignedChange is a recovered change, and the place of its event.
type SignedChange struct {
	Target   string           `json:"target"`
	Sequence int64            `json:"sequence"`
	Event    events.EventKind `json:"event"`
	StoredAt time.Time        `json:"stored_at"`
	Place    uint64           `json:"stream_sequence"`
}

// Earlier returns how many changes rest on signatures of keys with which the registry no longer
// signs.
func (r *Recovered) Earlier() (n int) {
	for _, s := range r.Signers {
		if s.Earlier {
			n += s.Changes
		}
	}
	return n
}

// Recover restores changes that the database lacks, from the stream of events and, if they are
// still kept, the receipts. It may run while registries run, which hold the services concerned, and
// several may run at once. Each batch is one transaction; running it again continues where it
// stopped.
//
// Stand-ins replace what the streams don't have. A request's digest is unknown, so a request with
// the same nonce, kind and key counts as the same. A binding has no service_type and endpoint_url,
// a revocation no provider_receipt. If the receipt is gone, the event's nonce stands for the
// request's nonce, and a new receipt is signed.
func (a *Admin) Recover(ctx context.Context, how Recovery) (Recovered, error) {
	unhurried := newStore(a.store.db.Unhurried())
	r, err := restore.Recover(ctx, restore.Recovery{
		Ledger: a.store.ledger, Unhurried: unhurried.ledger, Admin: unhurried.admin,
		JetStream: how.JetStream, Trust: how.Trust, Key: how.Key, DryRun: how.DryRun, UpTo: how.UpTo, Log: how.Log,
	})
	gap := func(g restore.Gap) Gap { return Gap(g) }
	conflict := func(c restore.Conflict) Conflict { return Conflict(c) }
	change := func(c restore.SignedChange) SignedChange { return SignedChange(c) }
	return Recovered{
		DryRun: r.DryRun, Messages: r.Messages, Changes: r.Changes, Services: r.Services, WithoutReceipt: r.WithoutReceipt,
		UpTo: r.UpTo, Refused: r.Refused, AfterEnd: r.AfterEnd, UnknownApps: append([]events.AppID{}, r.UnknownApps...),
		Signers: listOf(r.Signers, func(s restore.Signer) Signer {
			return Signer{s.PublicKey, s.Earlier, s.Changes, listOf(s.Newest, change)}
		}),
		Gaps: listOf(r.Gaps, gap), Conflicts: listOf(r.Conflicts, conflict), IssuedTwice: listOf(r.IssuedTwice, conflict),
	}, err
}

// listOf returns a list with each element converted. JSON shows it as [] if it is empty.
func listOf[A, B any](list []A, one func(A) B) []B {
	converted := make([]B, len(list))
	for i := range list {
		converted[i] = one(list[i])
	}
	return converted
}
