package bench_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/bench"
)

const origin = "omiappreg.org"

func TestLoadIsTheSpecsOwn(t *testing.T) {
	t.Parallel()
	const services, rotations = 3, 8
	load, registry := bench.NewLoad(services, 2, rotations), events.GenerateSigningKey()
	trust, err := events.NewTrust(origin, registry.Public())
	if err != nil {
		t.Fatal(err)
	}
	current := map[events.Target]events.PublicKey{}
	for i := range load.Bindings() {
		event, payload := load.Binding(i, origin, registry)
		if heard, err := trust.Invalidation(event.Subject(), payload); err != nil || heard != event {
			t.Fatalf("binding %d is not what a registry says: %v", i, err)
		}
		current[event.Target] = event.NewKey
	}
	if len(current) != services+2 {
		t.Fatalf("%d services have different names", len(current))
	}
	at := time.Now().Add(time.Hour)
	var signed atomic.Int64
	requests, err := load.Sign(t.Context(), func(int) time.Time { return at }, &signed)
	if err != nil || signed.Load() != rotations {
		t.Fatalf("%d are signed: %v", signed.Load(), err)
	}
	for i, r := range requests {
		parsed, err := events.ParseRequest(r.Subject, r.Payload)
		if err != nil {
			t.Fatalf("rotation %d: %v", i, err)
		}
		if key := current[parsed.Target]; !key.Verify(parsed.Signed, parsed.Signature) {
			t.Errorf("rotation %d is not signed by the key before it", i)
		}
		current[parsed.Target] = parsed.NewKey
		if parsed.Timestamp != at.Unix() || r.MsgID != events.RequestMsgID(r.Subject, parsed.Nonce) {
			t.Errorf("rotation %d: timestamp %d, id %s", i, parsed.Timestamp, r.MsgID)
		}
		for _, added := range []string{"app_id", "service_id", "grace_period", "new_key_signature"} {
			if strings.Contains(string(r.Payload), added) {
				t.Errorf("rotation %d has %s, which the spec's payload does not", i, added)
			}
		}
	}
}

func TestSignatureLimit(t *testing.T) {
	t.Parallel()
	if limit := bench.SignatureLimit(t.Context(), 20*time.Millisecond); limit < 1 {
		t.Errorf("%v rotations a second", limit)
	}
}
