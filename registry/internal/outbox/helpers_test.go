package outbox

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/parallel"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/schema"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// patience is for what takes milliseconds on an idle machine.
const patience = 2 * time.Minute

// book is a registry's database.
type book struct {
	t      *testing.T
	db     *sqldb.DB
	ledger *ledger.Ledger
	outbox *ledger.Outbox
	admin  *ledger.Admin
	log    *slog.Logger
}

func openBook(t *testing.T, url string) *book {
	t.Helper()
	b := &book{t: t, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	var err error
	if b.db, err = sqldb.Open(t.Context(), url, b.log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.db.Close() })
	if err := b.db.Migrate(t.Context(), sqldb.Registry, schema.Registry()); err != nil {
		t.Fatal(err)
	}
	b.ledger, b.outbox, _, b.admin = ledger.New(b.db)
	return b
}

// bind commits the first bindings of services in one batch, and returns the messages of each.
func (b *book) bind(at time.Time, services ...string) [][]decision.Message {
	b.t.Helper()
	const origin = "omiappreg.org"
	master := events.GenerateSigningKey()
	state := decision.NewState()
	state.Mode = decision.Pessimistic
	app, err := events.ParseAppID("org.omiappreg.alice")
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.admin.AddApp(b.t.Context(), ledger.App{AppID: app, MasterPublicKey: master.Public()}, at.Unix()); err != nil {
		b.t.Fatal(err)
	}
	state.Masters[app] = master.Public()
	var list []decision.Incoming
	for i, service := range services {
		id, err := events.ParseServiceID(service)
		if err != nil {
			b.t.Fatal(err)
		}
		draft := events.Draft{
			Kind: events.Binding, Target: events.Target{App: app, Service: id}, Timestamp: at.Unix(), Nonce: events.NewNonce(), NewKey: events.GenerateSigningKey(), Origin: origin,
		}
		payload, err := draft.Sign(master)
		if err != nil {
			b.t.Fatal(err)
		}
		list = append(list, decision.NewIncoming(draft.Subject(), payload, at.Unix(), i))
	}
	issuer := decision.Issuer{
		Rules: decision.Rules{Origin: origin}, Key: events.GenerateSigningKey(), NewNonce: events.NewNonce, Parallel: parallel.Each,
	}
	batch := decision.NewBatch(issuer, at, state, list)
	batch.Decide()
	if lost, err := b.ledger.Commit(b.t.Context(), batch.Groups, at); err != nil || len(lost.Services) > 0 {
		b.t.Fatalf("lost %v: %v", lost, err)
	}
	messages := make([][]decision.Message, len(list))
	for _, g := range batch.Groups {
		for i := range g.Outcomes {
			messages[g.Outcomes[i].In.Index] = g.Outcomes[i].Messages()
		}
	}
	return messages
}

// rows counts the rows of the outbox.
func (b *book) rows() (n int) {
	b.t.Helper()
	if err := b.db.QueryRow(b.t.Context(), "SELECT COUNT(*) FROM outbox").Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// unguarded is a guard for a database that is not restored. The position stays.
type unguarded struct{}

func (unguarded) MoveFrom() (ledger.Position, bool)             { return ledger.Position{}, false }
func (unguarded) Moved(context.Context, ledger.Position, error) {}

func jetStreamOn(t *testing.T, b *testenv.Broker) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(testenv.Connect(t, b.URL()))
	if err != nil {
		t.Fatal(err)
	}
	return js
}
