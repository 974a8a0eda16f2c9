package events_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
)

func TestParseTrustedKey(t *testing.T) {
	t.Parallel()
	key := testKey(1).Public()
	for text, want := range map[string]events.TrustedKey{
		"":                             {PublicKey: key},
		"@1705412600":                  {key, events.End{Time: now}},
		"@2024-01-16T13:43:20Z":        {key, events.End{Time: now}},
		"@2024-01-16T14:43:20.9+01:00": {key, events.End{Time: now}},
		"@1705412600/4711":             {key, events.End{Time: now, Place: 4711}},
	} {
		got, err := events.ParseTrustedKey(key.String() + text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		if again, err := events.ParseTrustedKey(got.String()); err != nil || again != got {
			t.Errorf("%q is printed as %q, which is read as %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{
		"@", "@0", "@-5", "@soon", "@2024-01-16", "@1705412600/", "@1705412600/0", "@1705412600/-1", "@1705412600/x", "@/5",
		"@1705412600@1705412600", "@9007199254740992",
	} {
		if got, err := events.ParseTrustedKey(key.String() + text); !errors.Is(err, events.ErrTrustedKey) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	if _, err := events.ParseTrustedKey("ed25519:x@5"); !errors.Is(err, events.ErrPublicKey) {
		t.Errorf("a bad key: %v", err)
	}
}

// TestForgedByAnEndedKey: what a stolen key signs counts up to its end, by when and where JetStream
// stored it. The timestamp inside is the thief's, and so are key_id and the key that he hints at.
func TestForgedByAnEndedKey(t *testing.T) {
	t.Parallel()
	present, stolen := testKey(0), testKey(7)
	end := time.Unix(now, 0)
	trust := must(events.NewTrustUntil(origin, events.TrustedKey{PublicKey: present.Public()},
		events.TrustedKey{PublicKey: stolen.Public(), End: events.End{Time: now, Place: 100}}))
	i := someInvalidation(events.MasterReset)
	i.Timestamp, i.GracePeriodExpiry = now-1000, now-1000
	for _, c := range []struct {
		name   string
		key    events.SigningKey
		stored time.Time
		place  uint64
		want   events.Reason
	}{
		{"the last moment", stolen, end.Add(-1), 100, ""},
		{"the end", stolen, end, 100, events.EndedRegistryKey},
		{"a stream that was created again", stolen, end.Add(time.Hour), 1, events.EndedRegistryKey},
		{"behind the place", stolen, end.Add(-time.Hour), 101, events.EndedRegistryKey},
		{"as an answer", stolen, time.Time{}, 0, events.EndedRegistryKey},
		{"the present key", present, end.Add(time.Hour), 101, ""},
		{"a stranger", testKey(8), end.Add(-time.Hour), 1, events.UntrustedSignature},
	} {
		message := i.Sign(c.key)
		_, err := trust.At(c.stored, c.place).Invalidation(i.Subject(), message)
		if reasonOf(err) != c.want {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		var batch []events.Published
		for range 5 { // enough for one equation
			batch = append(batch, events.Published{Subject: i.Subject(), Payload: message, Stored: c.stored, Place: c.place},
				events.Published{Subject: i.Subject(), Payload: i.Sign(present)})
		}
		for n, verdict := range trust.Invalidations(batch) {
			want := c.want
			if n%2 == 1 {
				want = ""
			}
			if reasonOf(verdict.Err) != want {
				t.Errorf("%s, in a batch: %v, want %q", c.name, verdict.Err, want)
			}
		}
	}
	record := events.ServiceRecord{Origin: origin, AppID: someTarget().App, ServiceID: someTarget().Service, Status: events.Active, Sequence: 9, Timestamp: now - 1000}
	if _, err := trust.ServiceRecord(someTarget(), record.Sign(stolen)); reasonOf(err) != events.EndedRegistryKey {
		t.Errorf("a record: %v", err)
	}
	if _, err := trust.ServiceRecord(someTarget(), record.Sign(present)); err != nil {
		t.Errorf("a record by the present key: %v", err)
	}
	if keys := trust.PublicKeys(); !slices.Equal(keys, []events.PublicKey{present.Public()}) {
		t.Errorf("trusted now are %v", keys)
	}
}

// TestTwoEnds: a key that is named twice ends as early as either says.
func TestTwoEnds(t *testing.T) {
	t.Parallel()
	key := testKey(1).Public()
	trust := must(events.NewTrustUntil(origin, events.TrustedKey{PublicKey: key}, events.TrustedKey{key, events.End{Time: now + 5, Place: 7}},
		events.TrustedKey{key, events.End{Time: now}}, events.TrustedKey{PublicKey: testKey(0).Public()}))
	want := []events.TrustedKey{{key, events.End{Time: now, Place: 7}}, {PublicKey: testKey(0).Public()}}
	if got := trust.TrustedKeys(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestAnnouncedEnds: an event after the end of a key is not applied by who announces that end.
func TestAnnouncedEnds(t *testing.T) {
	t.Parallel()
	key := testKey(1).Public()
	trust := must(events.NewTrustUntil(origin, events.TrustedKey{key, events.End{Time: now, Place: 7}}, events.TrustedKey{PublicKey: testKey(0).Public()}))
	metadata := map[string]string{}
	for _, word := range trust.Announcement() {
		metadata[events.TrustMetadata] += " " + word
	}
	before, after := time.Unix(now-1, 0), time.Unix(now, 0)
	for _, c := range []struct {
		key    events.PublicKey
		stored time.Time
		place  uint64
		want   bool
	}{
		{key, before, 7, true}, {key, before, 8, false}, {key, after, 7, false}, {testKey(0).Public(), after, 9, true}, {testKey(2).Public(), before, 1, false},
	} {
		if got := events.MayHaveApplied(metadata, origin, c.key, c.stored, c.place); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
