package decision

import (
	"bytes"
	"encoding/hex"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/vectors"
)

// TestVectorRequests sends every case, alone, through the whole way of a batch, on the state of the case's file. The
// same state, requests, time and issuer lead to the same bytes, and a state that was remembered wrongly to the same outcome.
func TestVectorRequests(t *testing.T) {
	t.Parallel()
	for _, file := range vectors.Load(t).Requests {
		for _, c := range file.Cases {
			t.Run(c.Name, func(t *testing.T) {
				t.Parallel()
				first := decideVector(t, file.State, c, false)
				checkVector(t, file.State.Origin, c, &first)
				again := decideVector(t, file.State, c, false)
				if !bytes.Equal(first.EventBytes, again.EventBytes) || !bytes.Equal(first.ReceiptBytes, again.ReceiptBytes) {
					t.Errorf("the same inputs led to other bytes:\n%s\n%s\n%s\n%s",
						first.EventBytes, again.EventBytes, first.ReceiptBytes, again.ReceiptBytes)
				}
				confirmed := decideVector(t, file.State, c, true)
				if confirmed.Verdict != first.Verdict || confirmed.Reason != first.Reason {
					t.Errorf("from wrong memory: %v %s, want %v %s", confirmed.Verdict, confirmed.Reason, first.Verdict, first.Reason)
				}
			})
		}
	}
}

// decideVector decides a case. If it is to be wrong, the memory has another state of each service.
func decideVector(t *testing.T, state vectors.State, c vectors.RequestCase, wrong bool) Outcome {
	t.Helper()
	k := bookOf(t, state, c)
	one := NewIncoming(c.Subject, c.Message(), c.StoredAt, 0)
	one.Place = Place{Stream: c.Stream, Sequence: c.Sequence}
	st := k.state()
	if wrong {
		memory := NewState()
		memory.Masters = st.Masters
		for target, s := range st.Services {
			stale := *s
			stale.Sequence += 7
			stale.Key = events.GenerateSigningKey().Public()
			memory.Services[target], memory.Remembered[target] = &stale, true
		}
		st = memory
	}
	b := k.decideOn(st, []Incoming{one})
	outcomes := inOrderOf(b, 1)
	if wrong && outcomes[0].Verdict == Committed {
		// The commit would find the conflict: then the request is decided on what the database says.
		b = k.decideOn(k.state(), b.RequestsOf(map[events.Target]bool{outcomes[0].In.Request.Target: true}))
		outcomes = inOrderOf(b, 1)
	}
	return outcomes[0]
}

func checkVector(t *testing.T, origin string, c vectors.RequestCase, o *Outcome) {
	t.Helper()
	trust, err := events.NewTrust(origin, testKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	receipt, err := trust.Receipt(events.ReceiptSubject+o.In.Request.Target.String(), o.ReceiptBytes)
	if err != nil {
		t.Fatalf("the receipt can't be trusted: %v\n%s", err, o.ReceiptBytes)
	}
	switch c.Expect {
	case vectors.Committed:
		if o.Verdict != Committed {
			t.Fatalf("refused: %s (%s), want committed", o.Reason, o.Detail)
		}
		checkCommitted(t, trust, c, o, receipt)
	case vectors.Duplicate:
		if o.Verdict != Duplicate {
			t.Fatalf("verdict %v %s, want the first receipt again", o.Verdict, o.Reason)
		}
		if c.ExpectSequence != 0 && receipt.Sequence != c.ExpectSequence {
			t.Errorf("the receipt is of sequence %d, want %d", receipt.Sequence, c.ExpectSequence)
		}
	default:
		if o.Verdict != Refused || o.Reason != events.Reason(c.Expect) {
			t.Fatalf("verdict %v, reason %q (%s), want %s", o.Verdict, o.Reason, o.Detail, c.Expect)
		}
		if receipt.Event != events.RequestRejected || receipt.Reason != o.Reason || receipt.Detail == "" {
			t.Errorf("the receipt does not tell the refusal: %+v", receipt)
		}
	}
}

func checkCommitted(t *testing.T, trust events.Trust, c vectors.RequestCase, o *Outcome, receipt events.Receipt) {
	t.Helper()
	event, err := trust.Invalidation(o.Event.Subject(), o.EventBytes)
	if err != nil {
		t.Fatalf("the event can't be applied: %v", err)
	}
	if c.ExpectGrace != nil && event.GracePeriodExpiry-event.Timestamp != *c.ExpectGrace {
		t.Errorf("grace period %d s, want %d s", event.GracePeriodExpiry-event.Timestamp, *c.ExpectGrace)
	}
	if c.ExpectEvent != "" && event.Event != events.EventKind(c.ExpectEvent) {
		t.Errorf("event %s, want %s", event.Event, c.ExpectEvent)
	}
	if c.ExpectSequence != 0 && event.Sequence != c.ExpectSequence {
		t.Errorf("sequence %d, want %d", event.Sequence, c.ExpectSequence)
	}
	if event.Timestamp != c.ProcessedAt {
		t.Errorf("timestamp %d, want that of the decision, %d", event.Timestamp, c.ProcessedAt)
	}
	if receipt.Event != events.RequestCommitted || receipt.Sequence != event.Sequence || receipt.PublicKey != event.NewKey ||
		receipt.EventNonce != event.Nonce || receipt.GracePeriodExpiry != event.GracePeriodExpiry || receipt.RequestNonce != o.In.Request.Nonce {
		t.Errorf("the receipt does not tell the change: %+v", receipt)
	}
}

// bookOf is a registry in a vector file's state that meets the case.
func bookOf(t *testing.T, state vectors.State, c vectors.RequestCase) *book {
	t.Helper()
	k := newBook(t, Rules{Grace: state.GracePeriod, Skew: state.MaxClockSkew, RequireProof: c.Proofs(state)})
	k.issuer.Rules.Origin, k.now = state.Origin, c.ProcessedAt
	for _, a := range state.Apps {
		target := parsed(t, events.ParseTarget, a.AppID+".x")
		k.masters[target.App] = parsed(t, events.ParsePublicKey, a.MasterPublicKey)
		k.taken[k.masters[target.App]] = true
		k.uses[target.App] = &AppUse{}
	}
	for _, s := range state.Services {
		k.load(s)
	}
	return k
}

func (k *book) load(s vectors.Service) {
	target := parsed(k.t, events.ParseTarget, s.AppID+"."+s.ServiceID)
	one := &Service{ID: 1, Status: events.ServiceStatus(s.Status), Sequence: s.Sequence, ChangedAt: 1}
	byNumber := map[int64]events.PublicKey{}
	for _, key := range s.Keys {
		public := parsed(k.t, events.ParsePublicKey, key.PublicKey)
		k.taken[public], byNumber[key.FromSequence] = true, public
		if key.FromSequence == s.Sequence && one.Active() {
			one.Key = public
		} else {
			k.past[target] = append(k.past[target], PastKey{public, key.FromSequence})
		}
	}
	for _, u := range s.UsedRequests {
		digest, err := hex.DecodeString(u.CanonicalDataSHA256)
		if err != nil {
			k.t.Fatal(err)
		}
		receipt := events.Receipt{
			Origin: k.issuer.Rules.Origin, Target: target, Event: events.RequestCommitted, Nonce: k.issuer.NewNonce(), Timestamp: 1,
			RequestNonce: parsed(k.t, events.ParseNonce, u.Nonce), Sequence: u.Sequence, PublicKey: byNumber[u.Sequence], GracePeriodExpiry: 1,
			EventNonce: k.issuer.NewNonce(),
		}
		k.committed[RequestID{target, receipt.RequestNonce}] = Prior{
			Digest: [32]byte(digest), ReceiptNonce: receipt.Nonce, Receipt: receipt.Sign(testKey), Key: receipt.PublicKey,
		}
	}
	if last := s.LastChange; last != nil {
		one.ChangedAt, one.SignedAt = last.CommittedAt, last.MasterTimestamp
		one.Place = Place{Stream: last.Stream, Sequence: last.Sequence}
	}
	k.refused[target] = refusedNonces{}
	for _, name := range s.RefusedRequests {
		k.refused[target][parsed(k.t, events.ParseNonce, name)] = true
	}
	k.services[target] = one
}

func parsed[T any](t testing.TB, parse func(string) (T, error), text string) T {
	t.Helper()
	v, err := parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
