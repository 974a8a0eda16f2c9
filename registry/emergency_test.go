package registry

import (
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// TestEmergency: an emergency rotation alone ends the key before it; a stolen one in grace lives on. With end_earlier it ends all of
// them: the event says so, and so do the record, the history, the JWK Set, and what is recovered from the stream.
func TestEmergency(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w, d, stop := boundWorld(t, url)
		old := takeBackup(t, w.store)
		stolen := d.current.Public()
		w.commit(d.rotate())
		draft := d.draft(events.Rotation, events.GenerateSigningKey())
		draft.GracePeriod = new(int64)
		payload, err := draft.Sign(d.current)
		if err != nil {
			t.Fatal(err)
		}
		d.current = draft.NewKey
		w.commit(request{draft, payload})
		if r := w.service(d.target); len(r.Grace) != 1 || r.Grace[0].PublicKey != stolen {
			t.Errorf("after a grace period of 0, in grace: %+v", r.Grace)
		}
		receipt := w.commit(d.emergency())
		w.ended(d.target, receipt)
		w.settled()
		w.checked()
		list := w.events(d.target)
		if last := list[len(list)-1]; !last.EndEarlier || last.Event != events.KeyRotation || last.GracePeriodExpiry != last.Timestamp {
			t.Errorf("the event: %+v", last)
		}
		stop()

		old.restore(t, w.store)
		stop = w.run()
		w.recover(3, 1)
		w.ended(d.target, receipt)
		w.commit(d.rotate())
		w.settled()
		w.checked()
		if r := w.service(d.target); len(r.Grace) != 1 || r.Grace[0].PublicKey != receipt.PublicKey {
			t.Errorf("after another rotation, in grace: %+v", r.Grace)
		}
		stop()
	})
}

func (w *world) service(t events.Target) events.ServiceRecord {
	w.t.Helper()
	var record events.ServiceRecord
	testenv.Eventually(w.t, patience, "the record is answered", func() (err error) {
		record, err = w.lookup.Service(w.t.Context(), t)
		return err
	})
	return record
}

// ended checks that a receipt's key is the only one that is accepted, and that the history says so.
func (w *world) ended(t events.Target, receipt events.Receipt) {
	w.t.Helper()
	if r := w.service(t); len(r.Grace) > 0 || r.Current.PublicKey != receipt.PublicKey {
		w.t.Errorf("current %v, in grace: %+v", r.Current, r.Grace)
	}
	history, err := w.lookup.History(w.t.Context(), t, events.HistoryRange{Limit: events.HistoryPart})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, key := range history.Keys {
		if key.PublicKey != receipt.PublicKey && (key.Until == nil || *key.Until > receipt.Timestamp) {
			w.t.Errorf("the history of a key that has ended: %+v", key)
		}
	}
}

// TestStaging: a request that was heard at one registry is refused by another one, for which it was not made. The app and its Master
// Key are the same at both.
func TestStaging(t *testing.T) {
	t.Parallel()
	production := openStore(t, testenv.Database(t, testenv.SQLite))
	staging := openStore(t, testenv.Database(t, testenv.SQLite))
	d := newDeveloper(t, production, "org.omiappreg.alice", "cms")
	d.now = testNowTime
	if err := staging.Admin().AddApp(t.Context(), App{d.target.App, d.master.Public()}, 1); err != nil {
		t.Fatal(err)
	}
	here := newTestIntake(t, production, Policy{Origin: testOrigin}, testNowTime)
	there := newTestIntake(t, staging, Policy{Origin: "staging.example"}, testNowTime)
	from := func(origin string, kind events.RequestKind, by events.SigningKey) request {
		draft := d.draft(kind, events.GenerateSigningKey())
		if draft.Origin = origin; kind == events.Revocation {
			draft.NewKey = events.SigningKey{}
		}
		payload, err := draft.Sign(by)
		if err != nil {
			t.Fatal(err)
		}
		return request{draft, payload}
	}
	bind := from("", events.Binding, d.master) // the spec's own payloads name no registry
	d.current = bind.draft.NewKey
	for _, in := range []*intake{here, there} {
		if o := decideAll(t, in, bind)[0]; o.Verdict != decision.Committed {
			t.Fatalf("a binding for any registry: %s", o.Reason)
		}
	}
	captured := []request{
		from("staging.example", events.Rotation, d.current), from("staging.example", events.Reset, d.master),
		from("staging.example", events.Revocation, d.master), from("staging.example", events.Binding, d.master),
	}
	for i, o := range decideAll(t, there, captured...) {
		if o.Verdict != decision.Committed {
			t.Errorf("%s at staging: %s", captured[i].draft.Kind, o.Reason)
		}
	}
	for i, o := range decideAll(t, here, captured...) {
		if o.Reason != events.TargetMismatch {
			t.Errorf("%s of staging in production: %q", captured[i].draft.Kind, o.Reason)
		}
	}
	if o := decideAll(t, here, d.rotate())[0]; o.Verdict != decision.Committed {
		t.Errorf("a rotation for this registry: %s", o.Reason)
	}
}
