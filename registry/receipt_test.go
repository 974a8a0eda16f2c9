package registry

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// manyRequests is more than the 1,000 consumers that a stream takes.
var manyRequests = flag.Int("many.requests", 1100, "requests that TestManyUnderWay has under way at once")

// TestManyUnderWay: however many wait for their answers at once, the stream of receipts has no consumer for it. Each used to have one,
// and of the requests beyond the first 1,000 none was sent.
func TestManyUnderWay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	if err := EnsureStreams(t.Context(), w.js, 1); err != nil {
		t.Fatal(err)
	}
	consumers, err := w.conn.SubscribeSync("$JS.API.CONSUMER.CREATE." + streams.Receipts + ".>")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	errs := make(chan error, *manyRequests)
	var stored sync.WaitGroup
	sender := registryclient.Sender{JetStream: w.js, Trust: w.trust}
	var developer *developer
	for i := range *manyRequests {
		if i%20 == 0 {
			developer = newDeveloper(t, w.store, fmt.Sprintf("org.example.app-%d", i/20), "s")
		}
		d := developer.another(fmt.Sprintf("s-%d", i))
		stored.Add(1)
		go func() {
			isStored := sync.OnceFunc(stored.Done)
			defer isStored() // also where it never is
			draft := d.draft(events.Binding, events.GenerateSigningKey())
			m, err := registryclient.Sign(draft, d.master.Private(), draft.NewKey.Private())
			if err == nil {
				var receipt events.Receipt
				receipt, err = sender.Send(ctx, d.target, m, isStored)
				if err == nil && receipt.Event != events.RequestCommitted {
					err = fmt.Errorf("refused: %s", receipt.Reason)
				}
			}
			errs <- err
		}()
	}
	stored.Wait() // all of them wait now
	w.run()
	for range *manyRequests {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	stream, err := w.js.Stream(t.Context(), streams.Receipts)
	if err != nil {
		t.Fatal(err)
	}
	if asked, _, _ := consumers.Pending(); asked > 0 || stream.CachedInfo().State.Consumers > 0 {
		t.Errorf("%d questions for consumers of receipts, and %d are there", asked, stream.CachedInfo().State.Consumers)
	}
}

// TestReceiptLookup: an answer that was missed is found, behind any number of others: what was committed, as long as the database has
// it, and the refusal of the very bytes.
func TestReceiptLookup(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		w := newWorld(t, url)
		w.run()
		d := newDeveloper(t, w.store, "org.example.shop", "cms")
		bind, rotate, forged := d.bind(), d.rotate(), d.sign(events.Rotation, events.GenerateSigningKey(), events.GenerateSigningKey())
		ask := func(of request, hash string) ([]byte, error) {
			question := events.ReceiptQuery{RequestNonce: of.draft.Nonce, RequestHash: hash}.Encode()
			return registryclient.Ask(t.Context(), w.conn, events.LookupReceiptSubject+d.target.String(), question)
		}
		hash := func(of request) string { return events.RequestHash(of.payload) }
		for _, r := range []request{bind, rotate} {
			w.publish(r)
			w.answer(r)
		}
		if _, err := w.js.Publish(t.Context(), forged.draft.Subject(), forged.payload); err != nil {
			t.Fatal(err)
		}
		refusal := w.answer(forged)
		copied := forged // the nonce of our rotation, and a stranger's bytes
		copied.payload = bytes.ReplaceAll(forged.payload, []byte(forged.draft.Nonce.String()), []byte(rotate.draft.Nonce.String()))
		if _, err := w.js.Publish(t.Context(), copied.draft.Subject(), copied.payload); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, patience, "the copy is refused", func() error {
			if list := w.receipts(d.target); list[len(list)-1].RequestHash != hash(copied) {
				return errors.New("not yet")
			}
			return nil
		})
		for _, c := range []struct {
			what  string
			of    request
			hash  string
			event events.ReceiptKind
		}{
			{"our rotation", rotate, hash(rotate), events.RequestCommitted},
			{"our rotation, by its nonce", rotate, "", events.RequestCommitted},
			{"the stranger's request", forged, hash(forged), events.RequestRejected},
		} {
			answer, err := ask(c.of, c.hash)
			receipt, bad := w.trust.Receipt(events.ReceiptSubject+d.target.String(), answer)
			if err != nil || bad != nil || receipt.Event != c.event || receipt.RequestNonce != c.of.draft.Nonce {
				t.Errorf("%s: %v, %v: %+v", c.what, err, bad, receipt)
			}
			if c.event == events.RequestRejected && receipt.Nonce != refusal.Nonce {
				t.Errorf("%s: another refusal than the first", c.what)
			}
		}
		none := (*api.Problem)(nil)
		if _, err := ask(forged, hash(bind)); !errors.As(err, &none) || none.Status != http.StatusNotFound || none.Reason != events.UnknownRequest {
			t.Errorf("a refusal of other bytes: %v", err)
		}
		stream, err := w.js.Stream(t.Context(), streams.Receipts)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Purge(t.Context()); err != nil { // as after 64 more receipts, or 7 days
			t.Fatal(err)
		}
		if _, err := ask(rotate, hash(rotate)); err != nil {
			t.Errorf("what was committed, and is in the database alone: %v", err)
		}
		if _, err := ask(forged, ""); !errors.As(err, &none) || none.Status != http.StatusNotFound {
			t.Errorf("what was refused long ago: %v", err)
		}
	})
}

// TestReceiptLookupIsBounded: who asks and asks costs so many reads of the stream a second, and those who ask about others get their
// answers.
func TestReceiptLookupIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testenv.Database(t, testenv.SQLite))
	w.run()
	at := time.Unix(testNow, 0)
	l := *w.lookup
	l.now = func() time.Time { return at } // all is in one second
	victim, other := parsedTarget(t, "org.example.shop.cms"), parsedTarget(t, "org.example.shop.blog")
	var flood sync.WaitGroup
	for range 64 {
		flood.Go(func() {
			for range 20 {
				refused := events.Receipt{Origin: testOrigin, Target: victim, Event: events.RequestRejected, Nonce: events.NewNonce(), Timestamp: 1, Reason: "x"}
				if err := w.conn.Publish(refused.Subject(), refused.Sign(testKey)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	flood.Wait()
	testenv.Eventually(t, patience, "64 receipts are kept", func() error {
		if n := len(w.receipts(victim)); n != 64 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	reads, err := w.conn.SubscribeSync("$JS.API.DIRECT.GET." + streams.Receipts)
	if err != nil {
		t.Fatal(err)
	}
	question := events.ReceiptQuery{RequestNonce: events.NewNonce(), RequestHash: events.RequestHash(nil)}
	refused := 0
	for range 300 {
		if _, err := l.Receipt(t.Context(), victim, question); errors.Is(err, errAskedTooOften) {
			refused++
		} else if !errors.Is(err, ErrNoReceipt) {
			t.Fatal(err)
		}
	}
	if _, err := l.Receipt(t.Context(), other, question); !errors.Is(err, ErrNoReceipt) {
		t.Errorf("about another service: %v", err)
	}
	if err := w.conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := reads.Pending(); n > 6 || refused < 295 {
		t.Errorf("the stream was read %d times, and %d of 300 questions were refused", n, refused)
	}
	at = at.Add(time.Second)
	if _, err := l.Receipt(t.Context(), victim, question); !errors.Is(err, ErrNoReceipt) {
		t.Errorf("a second later: %v", err)
	}
}

func parsedTarget(t *testing.T, text string) events.Target {
	t.Helper()
	parsed, err := events.ParseTarget(text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}
