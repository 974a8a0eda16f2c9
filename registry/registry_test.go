package registry

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/keyformat"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// TestLifeOfAService: bound, rotated, reset, revoked and bound again, through a real broker and database, with the
// receipts, events and records that go with it.
func TestLifeOfAService(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		w.run()
		d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
		var keys []events.PublicKey
		for i, step := range []func() request{d.bind, d.rotate, d.rotate, d.reset, d.rotate, d.revoke, d.bind} {
			r := step()
			w.publish(r)
			receipt := w.answer(r)
			if receipt.Event != events.RequestCommitted || receipt.Sequence != int64(i+1) {
				t.Fatalf("step %d: %+v", i+1, receipt)
			}
			if !r.draft.NewKey.IsZero() {
				keys = append(keys, r.draft.NewKey.Public())
			}
		}
		w.clean() // an event may come into its stream a moment after its receipt into the other
		list := w.events(d.target)
		want := []events.EventKind{
			events.ServiceBinding, events.KeyRotation, events.KeyRotation, events.MasterReset,
			events.KeyRotation, events.ServiceRevocation, events.ServiceBinding,
		}
		if len(list) != len(want) {
			t.Fatalf("%d events, want %d", len(list), len(want))
		}
		for i, e := range list {
			if e.Event != want[i] || e.Sequence != int64(i+1) {
				t.Errorf("event %d is %s with sequence %d, want %s", i+1, e.Event, e.Sequence, want[i])
			}
		}
		checkLookup(t, w, d.target, keys)
	})
}

func checkLookup(t *testing.T, w *world, target events.Target, keys []events.PublicKey) {
	t.Helper()
	reply, err := w.conn.Request(events.LookupServiceSubject+target.String(), nil, patience)
	if err != nil {
		t.Fatal(err)
	}
	record, err := w.trust.ServiceRecord(target, reply.Data)
	if err != nil {
		t.Fatal(err)
	}
	if record.Status != events.Active || record.Sequence != 7 || record.Current.PublicKey != keys[len(keys)-1] || len(record.Grace) != 0 {
		t.Errorf("record: %+v", record)
	}
	if reply, err = w.conn.Request(events.LookupHistorySubject+target.String(), nil, patience); err != nil {
		t.Fatal(err)
	}
	history, err := w.trust.ServiceHistory(target, reply.Data)
	if err != nil {
		t.Fatal(err)
	}
	if len(history.Keys) != len(keys) || history.Sequence != 7 {
		t.Fatalf("history: %+v", history)
	}
	for i, line := range history.Keys {
		if last := i == len(keys)-1; line.PublicKey != keys[i] || (line.Until == nil) != last {
			t.Errorf("history, key %d: %+v", i+1, line)
		}
	}
	if reply, err = w.conn.Request(events.LookupServiceSubject+"org.omiappreg.alice.nobody", nil, patience); err != nil {
		t.Fatal(err)
	}
	if code := reply.Header.Get("Nats-Service-Error-Code"); code != "404" {
		t.Errorf("an unknown service is answered with code %q: %s", code, reply.Data)
	}
}

// TestLookupHTTP: the same answers over HTTP, with a JWK Set that nobody caches past the next expiry, and problem
// documents.
func TestLookupHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	w.run()
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
	for _, r := range []request{d.bind(), d.rotate()} {
		w.publish(r)
		w.answer(r)
	}
	mux := http.NewServeMux()
	api.Mount(mux, w.lookup.Routes())
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	const service = "/v1/apps/org.omiappreg.alice/services/"
	for _, c := range []struct {
		path        string
		status      int
		contentType string
		reason      events.Reason
	}{
		{service + "cms", 200, "application/json", ""},
		{service + "cms/history", 200, "application/json", ""},
		{service + "cms/jwks.json", 200, "application/jwk-set+json", ""},
		{"/v1/registry", 200, "application/json", ""},
		{service + "nobody", 404, "application/problem+json", events.UnknownService},
		{service + "nobody/history", 404, "application/problem+json", events.UnknownService},
		{service + "BAD", 400, "application/problem+json", events.InvalidField},
	} {
		response, err := server.Client().Get(server.URL + c.path)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != c.status || response.Header.Get("Content-Type") != c.contentType {
			t.Errorf("%s: %d %s, want %d %s", c.path, response.StatusCode, response.Header.Get("Content-Type"), c.status, c.contentType)
		}
		var body struct {
			Keys   []keyformat.JSONWebKey `json:"keys"`
			Reason events.Reason          `json:"reason"`
		}
		if c.reason != "" {
			if err := json.UnmarshalRead(response.Body, &body); err != nil || body.Reason != c.reason {
				t.Errorf("%s: the reason is %q, %v", c.path, body.Reason, err)
			}
		}
		if strings.HasSuffix(c.path, "jwks.json") {
			if err := json.UnmarshalRead(response.Body, &body); err != nil || len(body.Keys) != 2 {
				t.Errorf("JWK Set: %v %v, want the current key and the one in grace", err, body)
			}
			if cache := response.Header.Get("Cache-Control"); cache != "public, max-age=29" {
				t.Errorf("the JWK Set's Cache-Control is %q", cache)
			}
		}
		_ = response.Body.Close()
	}
	record, err := w.lookup.Service(t.Context(), d.target)
	if err != nil || len(record.Grace) != 1 {
		t.Fatalf("the record: %+v, %v", record, err)
	}
	late := *w.lookup
	for left, want := range map[time.Duration]string{9050 * time.Millisecond: "3", 4 * time.Second: "1", 4*time.Second - 1: "0"} {
		late.now = func() time.Time { return time.Unix(record.Grace[0].Expires, 0).Add(-left) }
		mux, response := http.NewServeMux(), httptest.NewRecorder()
		api.Mount(mux, late.Routes())
		mux.ServeHTTP(response, httptest.NewRequest(http.MethodGet, service+"cms/jwks.json", http.NoBody))
		if cache := response.Header().Get("Cache-Control"); cache != "public, max-age="+want {
			t.Errorf("%v before a key's end, the JWK Set's Cache-Control is %q", left, cache)
		}
	}
}

// TestResend: the same bytes again get the first receipt again and change nothing, also after a restart.
func TestResend(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	stop := w.run()
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
	bind := d.bind()
	w.publish(bind)
	first := w.answer(bind)
	stop()
	w.run()
	live, err := w.conn.SubscribeSync(events.AnswerSubject + d.target.String()) // also what the stream knows already
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.js.Publish(t.Context(), bind.draft.Subject(), bind.payload); err != nil { // without its Nats-Msg-Id
		t.Fatal(err)
	}
	again, err := live.NextMsg(patience)
	if err != nil {
		t.Fatalf("the receipt is not sent again: %v", err)
	}
	receipt, err := w.trust.Receipt(events.ReceiptSubject+d.target.String(), again.Data)
	if err != nil || receipt.Nonce != first.Nonce {
		t.Fatalf("another receipt than the first: %v %+v", err, receipt)
	}
	if n := len(w.events(d.target)); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
	w.clean()
}

// TestCrashBeforePublish: what was committed and not published, because the process died, is published by whoever runs
// next, once; also where its clock was ahead, and its lease would end in an hour.
func TestCrashBeforePublish(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
		at := func(offset time.Duration) *intake {
			return newTestIntake(t, w.store, Policy{Origin: testOrigin}, func() time.Time { return time.Now().Add(offset) })
		}
		bind, rotate := d.bind(), d.rotate()
		decideAll(t, at(-2*ledger.LeaseFor), bind)
		decideAll(t, at(time.Hour), rotate)
		w.run()
		w.run() // a second replica
		for i, r := range []request{bind, rotate} {
			if receipt := w.answer(r); receipt.Sequence != int64(i+1) {
				t.Errorf("receipt %+v", receipt)
			}
		}
		w.clean()
		if n := len(w.events(d.target)); n != 2 {
			t.Errorf("%d events, want 2", n)
		}
	})
}

// TestTwoReplicas: two replicas share the work, also that of one service at a time, and commit each request once.
func TestTwoReplicas(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		w.run()
		w.run()
		first := newDeveloper(t, w.store, "org.omiappreg.alice", "s")
		const services, rounds = 12, 6
		var all []*developer
		for i := range services {
			all = append(all, first.another(fmt.Sprintf("s-%d", i)))
		}
		for round := range rounds {
			var sent []request
			for _, d := range all {
				step := d.rotate
				if round == 0 {
					step = d.bind
				}
				sent = append(sent, step())
				w.publish(sent[len(sent)-1])
			}
			for _, r := range sent {
				if receipt := w.answer(r); receipt.Sequence != int64(round+1) {
					t.Fatalf("round %d: %+v", round+1, receipt)
				}
			}
		}
		w.clean()
		for _, d := range all {
			if n := len(w.events(d.target)); n != rounds {
				t.Errorf("%s: %d events, want %d", d.target, n, rounds)
			}
		}
	})
}

// TestBrokerAway: the broker goes away while requests are on their way, and comes back. Every request that it took has
// its receipt.
func TestBrokerAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	w.run()
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
	var list []request
	for i := range 12 {
		step := d.rotate
		if i == 0 {
			step = d.bind
		}
		list = append(list, step())
		w.publish(list[i])
		if i%4 == 3 {
			w.broker.Stop()
			w.broker.Start()
		}
	}
	for i, r := range list {
		if receipt := w.answer(r); receipt.Event != events.RequestCommitted || receipt.Sequence != int64(i+1) {
			t.Fatalf("request %d: %+v", i+1, receipt)
		}
	}
	w.clean()
	if n := len(w.events(d.target)); n != len(list) {
		t.Errorf("%d events, want %d", n, len(list))
	}
}

// TestDatabaseAway: the database goes away again and again while requests are on their way, at any point of a commit.
// Every request has one receipt, and none is refused for it.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	direct := testenv.Database(t, testenv.Postgres)
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	proxy := testenv.NewProxy(t, u.Host)
	u.Host = proxy.Addr()
	w := newWorld(t, u.String())
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
	w.run()
	var list []request
	for i := range 30 {
		step := d.rotate
		if i == 0 {
			step = d.bind
		}
		list = append(list, step())
		w.publish(list[i])
		switch i % 5 {
		case 2:
			proxy.Cut()
		case 4:
			proxy.Restore()
			w.answer(list[i])
		}
	}
	proxy.Restore()
	for i, r := range list {
		if receipt := w.answer(r); receipt.Event != events.RequestCommitted || receipt.Sequence != int64(i+1) {
			t.Fatalf("request %d: %+v", i+1, receipt)
		}
	}
	w.clean()
	if n := len(w.events(d.target)); n != len(list) {
		t.Errorf("%d events, want %d", n, len(list))
	}
}

// TestGarbage: nothing that arrives stops the registry or reaches its database.
func TestGarbage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	w.run()
	d := newDeveloper(t, w.store, "org.omiappreg.alice", "cms")
	before := dump(t, w.store)
	for i, payload := range []string{"", "{", "null", "[]", strings.Repeat("[", 4000), `{"version":"1.0"}`, "\xff\xfe", strings.Repeat("x", 8000)} {
		for _, subject := range []string{
			events.RotationSubject + "org.omiappreg.alice.cms", events.BindingSubject + "a.b.c", events.RevocationSubject + "x",
			events.RotationSubject + "ORG.Bad.*", events.RotationSubject + strings.Repeat("a.", 40) + "z",
		} {
			if _, err := w.js.Publish(t.Context(), subject, []byte(payload)); err != nil {
				t.Logf("payload %d is not taken by the broker: %v", i, err)
			}
		}
	}
	bind := d.bind()
	w.publish(bind)
	if receipt := w.answer(bind); receipt.Event != events.RequestCommitted {
		t.Fatalf("after the garbage: %+v", receipt)
	}
	after := dump(t, w.store)
	if after["history"] != before["history"]+1 || after["services"] != before["services"]+1 {
		t.Errorf("garbage reached the database: %v, then %v", before, after)
	}
	w.clean()
}
