package registry

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// TestReplaceMaster: a Master Key that leaked signs nothing any more from its replacement on, also what was stored before. It is
// no key of anybody's again: of no service, and of no app.
func TestReplaceMaster(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		in := newTestIntake(t, store, Policy{Origin: testOrigin, RotationsPerMinute: -1}, time.Now)
		d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		decideAll(t, in, d.bind())
		bound, leaked, next := d.current, d.master, events.GenerateSigningKey()
		stored := []request{d.reset(), d.another("blog").bind(), d.revoke()}
		d.current = bound
		replace := func(key events.PublicKey) error {
			_, err := store.Admin().ReplaceMaster(t.Context(), App{d.target.App, key}, 5)
			return err
		}
		if err := errors.Join(replace(next.Public()), replace(next.Public())); err != nil {
			t.Fatal(err)
		}
		for i, o := range decideAll(t, in, stored...) {
			if o.Reason != events.InvalidSignature {
				t.Errorf("request %d by the old key: %q", i+1, o.Reason)
			}
		}
		d.master = next
		for range 2 { // on a guess, and read first
			if o := decideAll(t, in, d.sign(events.Rotation, leaked, bound))[0]; o.Reason != events.KeyInUse {
				t.Errorf("a rotation to the old key: %q", o.Reason)
			}
		}
		if o := decideAll(t, in, d.another("news").sign(events.Binding, leaked, next))[0]; o.Reason != events.KeyInUse {
			t.Errorf("a binding with the old key: %q", o.Reason)
		}
		for i, o := range decideAll(t, in, d.reset(), d.another("blog").bind()) {
			if o.Verdict != decision.Committed {
				t.Errorf("request %d by the new key: %q", i+1, o.Reason)
			}
		}
		other := App{newDeveloper(t, store, "org.omiappreg.bob", "x").target.App, leaked.Public()}
		unknown := App{other.AppID, next.Public()}
		unknown.AppID, _ = events.ParseAppID("org.omiappreg.carol")
		_, errOther := store.Admin().ReplaceMaster(t.Context(), other, 6)
		_, errUnknown := store.Admin().ReplaceMaster(t.Context(), unknown, 6)
		for name, c := range map[string]struct{ got, want error }{
			"the old key again":            {replace(leaked.Public()), ErrReplacedMaster},
			"a service's key":              {replace(bound.Public()), ErrMasterKey},
			"a weak key":                   {replace(events.PublicKey{}), events.ErrWeakKey},
			"the old key, for another app": {errOther, ErrReservedKey},
			"an unknown app":               {errUnknown, ErrUnknownApp},
			"adding it with the old key":   {store.Admin().AddApp(t.Context(), App{d.target.App, leaked.Public()}, 7), ErrReplacedMaster},
			"a list with the old key":      {store.Admin().AddApps(t.Context(), []App{{d.target.App, leaked.Public()}}, 7, slog.New(slog.DiscardHandler)), nil},
			"adding it with the new key":   {store.Admin().AddApp(t.Context(), App{d.target.App, next.Public()}, 7), nil},
		} {
			if !errors.Is(c.got, c.want) {
				t.Errorf("%s: %v, want %v", name, c.got, c.want)
			}
		}
		app, err := store.Admin().App(t.Context(), d.target.App)
		if err != nil || app.MasterPublicKey != next.Public() || app.AddedAt != 1 || len(app.Ended) != 1 ||
			app.Ended[0] != (EndedMaster{d.target.App, leaked.Public(), next.Public(), 5}) {
			t.Errorf("the app's history: %+v, %v", app, err)
		}
		if report, err := store.Admin().Check(t.Context(), nil, time.Now()); err != nil || len(report.Violations) > 0 {
			t.Errorf("check: %v, %v", report.Violations, err)
		}
	})
}

// TestReplacedMeanwhile: the Master Key is replaced after a request by the old one was decided, and before it is committed. It is
// not committed; what does not rest on that key is.
func TestReplacedMeanwhile(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		store := openStore(t, url)
		in := newTestIntake(t, store, Policy{Origin: testOrigin}, time.Now)
		d := newDeveloper(t, store, "org.omiappreg.alice", "cms")
		rotating := d.another("rotating")
		decideAll(t, in, d.bind(), rotating.bind())
		b, err := decideBatch(t.Context(), in, incomingOf([]request{d.reset(), d.another("blog").bind(), rotating.rotate()}))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Admin().ReplaceMaster(t.Context(), App{d.target.App, events.GenerateSigningKey().Public()}, 5); err != nil {
			t.Fatal(err)
		}
		lost, err := store.ledger.Commit(t.Context(), b.Groups, b.At)
		if err != nil || lost.Taken || len(lost.Services) != 2 || lost.Services[rotating.target] {
			t.Fatalf("lost are %+v, %v", lost, err)
		}
		outcomes, err := decideAndCommit(t.Context(), in, b.RequestsOf(lost.Services))
		if err != nil || len(outcomes) != 2 {
			t.Fatalf("%d outcomes, %v", len(outcomes), err)
		}
		for _, o := range outcomes {
			if o.Reason != events.InvalidSignature {
				t.Errorf("%s: %q", o.In.Request.Target, o.Reason)
			}
		}
	})
}

// TestRegistrysOwnKeys: no service and no developer gets a key of the registry's own, nor an earlier one, nor one that has ended; not
// at a replica either that was not told of it.
func TestRegistrysOwnKeys(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w, d, stop := boundWorld(t, url)
		earlier, ended := events.GenerateSigningKey(), events.GenerateSigningKey()
		try := func() {
			t.Helper()
			for _, key := range []events.SigningKey{testKey, earlier, ended} {
				for _, r := range []request{
					d.sign(events.Rotation, key, d.current), d.sign(events.Reset, key, d.master), d.another("blog").sign(events.Binding, key, d.master),
				} {
					w.publish(r)
					if receipt := w.answer(r); receipt.Reason != events.KeyInUse {
						t.Errorf("%s: %q", r.draft.Kind, receipt.Reason)
					}
				}
				if err := w.store.Admin().AddApp(t.Context(), App{unknownApp(t), key.Public()}, 1); !errors.Is(err, ErrReservedKey) {
					t.Errorf("as a Master Key of a new app: %v", err)
				}
				if _, err := w.store.Admin().ReplaceMaster(t.Context(), App{d.target.App, key.Public()}, 1); !errors.Is(err, ErrReservedKey) {
					t.Errorf("as a new Master Key: %v", err)
				}
			}
		}
		stop()
		w.earlier = []events.TrustedKey{{PublicKey: earlier.Public()}, {PublicKey: ended.Public(), End: events.End{Time: 1}}}
		stop = w.run()
		try()
		stop()
		w.earlier = nil
		w.run()
		try()
		w.commit(d.rotate())
	})
}

func unknownApp(t *testing.T) events.AppID {
	t.Helper()
	app, err := events.ParseAppID("org.omiappreg.nobody")
	if err != nil {
		t.Fatal(err)
	}
	return app
}

// TestSigningKeyIsTaken: a registry doesn't start with a signing key that is a developer's or a service's.
func TestSigningKeyIsTaken(t *testing.T) {
	t.Parallel()
	for name, take := range map[string]func(*world, *developer){
		"Master Key": func(w *world, d *developer) {
			if err := w.store.Admin().AddApp(t.Context(), App{unknownApp(t), testKey.Public()}, 1); err != nil {
				t.Fatal(err)
			}
		},
		"service's key": func(w *world, d *developer) {
			decideAll(t, newTestIntake(t, w.store, Policy{Origin: testOrigin}, time.Now), d.sign(events.Binding, testKey, d.master))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, testenv.Database(t, testenv.SQLite))
			take(w, newDeveloper(t, w.store, "org.omiappreg.alice", "cms"))
			r, err := New(Config{Policy: Policy{Origin: testOrigin}, Key: testKey, Store: w.store, Conn: w.conn, Log: testLog(t)})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := r.Run(ctx); !errors.Is(err, ErrSigningKey) {
				t.Errorf("it says %v", err)
			}
		})
	}
}

// TestMasterNotice: a registry that runs tells of a Master Key that was replaced.
func TestMasterNotice(t *testing.T) {
	t.Parallel()
	w, d, _ := boundWorld(t, testenv.Database(t, testenv.SQLite))
	notices := make(chan *nats.Msg, 10)
	if _, err := w.conn.ChanSubscribe(events.NoticeSubject+">", notices); err != nil {
		t.Fatal(err)
	}
	next := events.GenerateSigningKey().Public()
	if _, err := w.store.Admin().ReplaceMaster(t.Context(), App{d.target.App, next}, 5); err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-notices:
		want := events.Notice{Origin: testOrigin, App: d.target.App, Event: events.MasterKeyReplaced, OldKey: d.master.Public(), NewKey: next, Timestamp: 5}
		if got, err := w.trust.Notice(m.Subject, m.Data); err != nil || got != want {
			t.Errorf("%+v, %v", got, err)
		}
	case <-time.After(patience):
		t.Fatal("it told nobody")
	}
}
