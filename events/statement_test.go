package events_test

import (
	"fmt"
	"testing"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
)

// invalidationData and receiptData are data as the JSON library would write it, in the order in
// which the spec prints it.
type (
	invalidationData struct {
		Origin            string           `json:"origin"`
		AppID             events.AppID     `json:"app_id"`
		ServiceID         events.ServiceID `json:"service_id"`
		Event             events.EventKind `json:"event"`
		OldPublicKey      events.PublicKey `json:"old_public_key,omitzero"`
		NewPublicKey      events.PublicKey `json:"new_public_key,omitzero"`
		GracePeriodExpiry int64            `json:"grace_period_expiry"`
		Timestamp         int64            `json:"timestamp"`
		Nonce             events.Nonce     `json:"nonce"`
		Sequence          int64            `json:"sequence,omitzero"`
		EndEarlier        bool             `json:"end_earlier,omitzero"`
	}
	receiptData struct {
		Origin            string             `json:"origin"`
		AppID             events.AppID       `json:"app_id"`
		ServiceID         events.ServiceID   `json:"service_id"`
		Event             events.ReceiptKind `json:"event"`
		RequestNonce      events.Nonce       `json:"request_nonce,omitzero"`
		Timestamp         int64              `json:"timestamp"`
		Nonce             events.Nonce       `json:"nonce"`
		Sequence          int64              `json:"sequence,omitzero"`
		PublicKey         events.PublicKey   `json:"public_key,omitzero"`
		GracePeriodExpiry *int64             `json:"grace_period_expiry,omitzero"`
		EventNonce        events.Nonce       `json:"event_nonce,omitzero"`
		Reason            events.Reason      `json:"reason,omitzero"`
		Detail            string             `json:"detail,omitzero"`
		RequestHash       string             `json:"request_hash,omitzero"`
	}
)

// TestStatement: what the registry signs is, byte for byte, what the JSON library would have it
// sign, and send.
func TestStatement(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		key := testKey(rapid.Byte().Draw(t, "signer"))
		text := rapid.String()
		nonce := rapid.SampledFrom([]events.Nonce{{}, someNonce(), events.NewNonce()})
		number := rapid.Int64Range(-events.MaxSafeInteger, events.MaxSafeInteger)
		public := rapid.SampledFrom([]events.PublicKey{{}, testKey(1).Public(), testKey(2).Public()})
		i := events.Invalidation{
			Origin: text.Draw(t, "origin"), Target: someTarget(), Event: events.EventKind(text.Draw(t, "event")),
			OldKey: public.Draw(t, "old"), NewKey: public.Draw(t, "new"), GracePeriodExpiry: number.Draw(t, "expiry"),
			Timestamp: number.Draw(t, "time"), Nonce: nonce.Draw(t, "nonce"), Sequence: number.Draw(t, "sequence"),
			EndEarlier: rapid.Bool().Draw(t, "end earlier"),
		}
		check(t, key, i.Sign(key), invalidationData{
			i.Origin, i.Target.App, i.Target.Service, i.Event, i.OldKey, i.NewKey, i.GracePeriodExpiry, i.Timestamp, i.Nonce, i.Sequence, i.EndEarlier,
		})
		r := events.Receipt{
			Origin: i.Origin, Target: i.Target, RequestNonce: nonce.Draw(t, "request nonce"), Timestamp: i.Timestamp, Nonce: i.Nonce,
			Event:    rapid.SampledFrom([]events.ReceiptKind{events.RequestCommitted, events.RequestRejected}).Draw(t, "answer"),
			Sequence: i.Sequence, PublicKey: i.NewKey, EventNonce: nonce.Draw(t, "event nonce"),
			Reason: events.Reason(text.Draw(t, "reason")), Detail: text.Draw(t, "detail"), RequestHash: text.Draw(t, "hash"),
		}
		data := receiptData{
			r.Origin, r.Target.App, r.Target.Service, r.Event, r.RequestNonce, r.Timestamp, r.Nonce, r.Sequence, r.PublicKey,
			nil, r.EventNonce, r.Reason, r.Detail, r.RequestHash,
		}
		if r.Event == events.RequestCommitted {
			r.GracePeriodExpiry = i.GracePeriodExpiry
			data.GracePeriodExpiry = &r.GracePeriodExpiry
		}
		check(t, key, r.Sign(key), data)
	})
}

func check(t *rapid.T, key events.SigningKey, got []byte, data any) {
	text := must(json.Marshal(data))
	want := fmt.Sprintf(`{"version":"1.0","data":%s,"signature":"%s","key_id":"%s"}`,
		text, key.Sign(must(events.Canonical(text))), key.Public().KeyID())
	if string(got) != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

// TestSignAllocations: what is signed for each rotation is put together in the memory that is sent,
// and fills it. The other allocation is the signature's, 64 bytes.
func TestSignAllocations(t *testing.T) {
	i, key := someInvalidation(events.KeyRotation), testKey(0)
	i.Sequence = 1234
	r := events.Receipt{
		Origin: origin, Target: i.Target, Event: events.RequestCommitted, RequestNonce: events.NewNonce(), Timestamp: now, Nonce: events.NewNonce(),
		Sequence: 1234, PublicKey: testKey(2).Public(), GracePeriodExpiry: now + 300, EventNonce: i.Nonce,
	}
	for name, sign := range map[string]func() []byte{
		"event": func() []byte { return i.Sign(key) }, "receipt": func() []byte { return r.Sign(key) },
	} {
		if allocs := testing.AllocsPerRun(10, func() { sign() }); allocs != 2 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
		if message := sign(); cap(message)-len(message) > 100 {
			t.Errorf("%s: %d bytes in %d", name, len(message), cap(message))
		}
	}
}
