package registry

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestForgedByAnEarlierKey: whoever has stolen an earlier key of the registry resets a service by an event of his own. With the
// key's end the registry serves the service as before, check finds nothing, and recover writes nothing of it; without, recover says
// whose signature the change rests on.
func TestForgedByAnEarlierKey(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w, d, stop := boundWorld(t, url)
		stop()
		stolen := events.GenerateSigningKey()
		end := events.End{Time: time.Now().Unix()}
		forged := events.Invalidation{
			Origin: testOrigin, Target: d.target, Event: events.MasterReset, OldKey: d.current.Public(), NewKey: events.GenerateSigningKey().Public(),
			GracePeriodExpiry: end.Time - 1000, Timestamp: end.Time - 1000, Nonce: events.NewNonce(), Sequence: 2,
		}
		if _, err := w.js.Publish(t.Context(), forged.Subject(), forged.Sign(stolen)); err != nil {
			t.Fatal(err)
		}
		trust := func(end events.End) events.Trust {
			trust, err := events.NewTrustUntil(testOrigin, events.TrustedKey{PublicKey: testKey.Public()}, events.TrustedKey{PublicKey: stolen.Public(), End: end})
			if err != nil {
				t.Fatal(err)
			}
			return trust
		}
		how := w.recovery()
		how.Trust, how.DryRun = trust(events.End{}), true
		report, err := w.store.Admin().Recover(t.Context(), how)
		if err != nil || report.Earlier() != 1 || len(report.Signers) != 1 || report.Signers[0].PublicKey != stolen.Public() ||
			len(report.Signers[0].Newest) != 1 || report.Signers[0].Newest[0].Target != d.target.String() {
			t.Errorf("recover says of an earlier key without an end: %+v, %v", report, err)
		}
		for _, end := range []events.End{end, {Time: end.Time + 3600, Place: 1}} {
			w.trust = trust(end)
			report, err := w.store.Admin().Recover(t.Context(), w.recovery())
			if err != nil || !report.Complete() || report.Changes != 0 || report.AfterEnd != 1 {
				t.Errorf("with the end %v recover did %+v, %v", end, report, err)
			}
			w.checked()
			w.earlier = w.trust.TrustedKeys()
			stop := w.run()
			w.commit(d.rotate())
			w.settled()
			stop()
		}
	})
}

// TestReceiptOfAnEndedKey: a request was committed and its sender has not heard so. Meanwhile the registry's key was replaced, and its
// end is known to all. The same bytes again, and a question, are answered with what the sender can believe.
func TestReceiptOfAnEndedKey(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w, d, stop := boundWorld(t, url)
		rotate := d.rotate()
		w.commit(rotate)
		w.settled()
		first := w.answer(rotate)
		stop()
		end := time.Now().Unix() + 1
		w.key = events.GenerateSigningKey()
		w.earlier = []events.TrustedKey{{PublicKey: testKey.Public(), End: events.End{Time: end}}}
		trust, err := events.NewTrustUntil(testOrigin, append(w.earlier, events.TrustedKey{PublicKey: w.key.Public()})...)
		if err != nil {
			t.Fatal(err)
		}
		heard := make(chan *nats.Msg, 64)
		if _, err := w.conn.ChanSubscribe(events.AnswerSubject+d.target.String(), heard); err != nil {
			t.Fatal(err)
		}
		w.run()
		testenv.Eventually(t, patience, "the end of the earlier key has come", func() error {
			if time.Now().Unix() < end {
				return errors.New("not yet")
			}
			return nil
		})
		// Without an id, so that the stream takes it for a new message.
		if _, err := w.js.Publish(t.Context(), rotate.draft.Subject(), rotate.payload); err != nil {
			t.Fatal(err)
		}
		select {
		case msg := <-heard:
			if again, err := trust.Receipt(events.ReceiptSubject+d.target.String(), msg.Data); err != nil || again != first {
				t.Errorf("heard %+v, %v, want %+v", again, err, first)
			}
		case <-time.After(patience):
			t.Fatal("no answer was heard")
		}
		question := events.ReceiptQuery{RequestNonce: rotate.draft.Nonce}.Encode()
		told, err := registryclient.Ask(t.Context(), w.conn, events.LookupReceiptSubject+d.target.String(), question)
		if again, bad := trust.Receipt(events.ReceiptSubject+d.target.String(), told); err != nil || bad != nil || again != first {
			t.Errorf("told %+v, %v, %v, want %+v", again, err, bad, first)
		}
	})
}

// TestRecoverUpTo: what the stream got after a dry run was looked at by nobody, and is not written.
func TestRecoverUpTo(t *testing.T) {
	t.Parallel()
	w, d, stop := boundWorld(t, testenv.Database(t, testenv.SQLite))
	old := takeBackup(t, w.store)
	w.commit(d.rotate())
	w.settled()
	how := w.recovery()
	how.DryRun = true
	stop()
	old.restore(t, w.store)
	seen, err := w.store.Admin().Recover(t.Context(), how)
	if err != nil || seen.Changes != 1 || seen.Earlier() != 0 {
		t.Fatalf("%+v, %v", seen, err)
	}
	late := events.Invalidation{
		Origin: testOrigin, Target: d.target, Event: events.MasterReset, OldKey: d.current.Public(), NewKey: events.GenerateSigningKey().Public(),
		GracePeriodExpiry: 5, Timestamp: 5, Nonce: events.NewNonce(), Sequence: 3,
	}
	if _, err := w.js.Publish(t.Context(), late.Subject(), late.Sign(testKey)); err != nil {
		t.Fatal(err)
	}
	how.DryRun, how.UpTo = false, seen.UpTo
	if report, err := w.store.Admin().Recover(t.Context(), how); err != nil || report.Changes != 1 || report.UpTo != seen.UpTo {
		t.Errorf("%+v, %v", report, err)
	}
}
