package refusal_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/refusal"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// makeStreams makes two streams, as the registry does at its start.
func makeStreams(ctx context.Context, nc *nats.Conn, js jetstream.JetStream) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := js.CreateStream(ctx, streams.InvalidationsConfig())
	if err == nil {
		_, err = js.CreateStream(ctx, streams.ReceiptsConfig())
	}
	return refusal.Behind(err, nc)
}

// fill publishes until the broker refuses it.
func fill(ctx context.Context, nc *nats.Conn, js jetstream.JetStream) (err error) {
	for err = makeStreams(ctx, nc, js); err == nil; {
		_, err = js.Publish(ctx, events.InvalidationSubject+"org.example.shop.cms", make([]byte, 60<<10))
	}
	return err
}

// account is a configuration with one account.
func account(jetStream string) string {
	return "no_auth_user: a, accounts { A { " + jetStream + ", users: [{ user: a, password: b }] } }\n"
}

// TestRefusals: the refusals of a broker that answers are reported as such, and not as waiting for
// the broker.
func TestRefusals(t *testing.T) {
	t.Parallel()
	limits := func(_ context.Context, nc *nats.Conn, _ jetstream.JetStream) error { return refusal.Limits(nc) }
	missing := func(ctx context.Context, _ *nats.Conn, js jetstream.JetStream) error {
		_, err := js.Stream(ctx, streams.Requests)
		return err
	}
	for name, c := range map[string]struct {
		broker  string // its configuration
		provoke func(context.Context, *nats.Conn, jetstream.JetStream) error
		want    string // empty: waiting may change it
	}{
		"no JetStream":  {"", makeStreams, "has JetStream off"},
		"of no account": {account("jetstream: disabled") + "jetstream {}", makeStreams, "gives this account no JetStream"},
		"permissions": {`jetstream {}, no_auth_user: a
			authorization { users: [{ user: a, password: b, permissions { publish: "omi.>" } }] }`, makeStreams, "does not permit"},
		"no space":         {"jetstream { max_file_store: 200KB }", fill, "has no space left"},
		"a full account":   {account("jetstream { max_file: 200KB }") + "jetstream {}", fill, "has no space left"},
		"no more streams":  {account("jetstream { max_streams: 1 }") + "jetstream {}", makeStreams, "has limits"},
		"duplicates":       {`jetstream { limits { duplicate_window: "1s" } }`, makeStreams, "has limits"},
		"no headers":       {"no_header_support: true, jetstream {}", limits, "has headers turned off"},
		"small messages":   {"max_payload: 760, jetstream {}", limits, "takes no message"},
		"all is well":      {"jetstream {}", limits, ""},
		"a missing stream": {"jetstream {}", missing, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nc := testenv.Connect(t, testenv.ServeText(t, c.broker))
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			err = c.provoke(t.Context(), nc, js)
			r, refused := refusal.Of(err)
			if refused != (c.want != "") || !strings.Contains(r.What, c.want) || refused && r.Do == "" {
				t.Errorf("%v: %+v, want %q", err, r, c.want)
			}
		})
	}
}

// TestTeller: a reason is logged once, with a headline of its own, and again after all was well.
func TestTeller(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	teller := refusal.Teller{Log: slog.New(slog.NewTextHandler(&said, nil))}
	denied := func(subject string) error {
		return fmt.Errorf("%w: Publish to %q", nats.ErrPermissionViolation, subject)
	}
	for range 2 {
		for range 2 {
			for _, err := range []error{jetstream.ErrJetStreamNotEnabled, denied("a"), denied("b"), nats.ErrTimeout} {
				teller.Tell(err)
			}
		}
		teller.Forget()
	}
	for headline, times := range map[string]int{"waiting for the broker": 2, "waiting does not change that": 6} {
		if n := strings.Count(said.String(), headline); n != times {
			t.Errorf("%q %d times, want %d:\n%s", headline, n, times, &said)
		}
	}
}
