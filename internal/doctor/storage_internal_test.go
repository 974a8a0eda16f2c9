package doctor

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry"
)

// TestDoctorFullStream: a stream that refuses what doesn't fit is nearly full.
func TestDoctorFullStream(t *testing.T) {
	t.Parallel()
	url := testenv.NewBroker(t).URL()
	js := jetStream(t, url)
	const bound = 4096
	if err := registry.EnsureStreamsWithin(t.Context(), js, 0, registry.StreamLimits{RequestBytes: bound, EventBytes: bound}); err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{events.RotationSubject, events.InvalidationSubject} {
		if _, err := js.Publish(t.Context(), subject+"org.example.shop.cms", make([]byte, bound*9/10)); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, examine(t, url, Config{}), map[string]string{
		"stream OMI_REQUESTS": "warning nearly full", "stream OMI_INVALIDATIONS": "warning nearly full", "stream OMI_RECEIPTS": "ok messages: 0",
	})
}

// TestDoctorStorage: a broker that answers every question, and stores nothing.
func TestDoctorStorage(t *testing.T) {
	t.Parallel()
	account := func(limits, may string) string {
		return "no_auth_user: doctor, jetstream {}, accounts { A { " + limits + ", users: [ { user: other, password: secret }, " +
			"{ user: doctor, password: secret, permissions { publish { " + may + " } } } ] } }"
	}
	denied := func(subject string) string { return account("jetstream: enabled", `allow: ">", deny: "`+subject+`"`) }
	left := jetstream.StreamConfig{Name: probeStream + "LEFT", Subjects: []string{probeSubject + "left"}}
	const all, unknown, full, bounds, well = `allow: ">"`, "warning unknown: ", "a full", "bounds required", "all is well"
	for name, c := range map[string]struct {
		broker string // its configuration
		want   string
	}{
		well:                  {"jetstream {}", "ok a message of 8.0 KiB was stored"},
		"no headers":          {"no_header_support: true, jetstream {}", "wrong headers"},
		"small messages":      {"max_payload: 760, jetstream {}", "wrong 760 bytes"},
		"small for a user":    {account("jetstream: enabled, limits { max_payload: 4KB }", all), "wrong 4096 bytes"},
		"short duplicates":    {`jetstream { limits { duplicate_window: "1s" } }`, "wrong limits"},
		full + " store":       {"jetstream { max_file_store: 200KB }", "wrong no space left"},
		full + " account":     {account("jetstream { max_file: 200KB }", all), "wrong no space left"},
		"no stream more":      {account("jetstream { max_streams: 1 }", all), unknown},
		bounds:                {account("jetstream { max_file: 1GB, max_bytes_required: true }", all), unknown},
		"may make no stream":  {denied("$JS.API.STREAM.CREATE.*"), unknown},
		"may delete none":     {denied("$JS.API.STREAM.DELETE.*"), unknown},
		"may not store there": {denied("omi.v1.doctor.*"), unknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testenv.ServeText(t, c.broker)
			js := jetStream(t, strings.Replace(url, "://", "://other:secret@", 1))
			if name == well { // what an earlier doctor left goes too
				if _, err := js.CreateStream(t.Context(), left); err != nil {
					t.Fatal(err)
				}
			}
			other := jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"other"}, Duplicates: time.Second}
			if name == bounds {
				other.MaxBytes = 1 << 20
			}
			if _, err := js.CreateStream(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			for strings.HasPrefix(name, full) {
				if _, err := js.Publish(t.Context(), "other", make([]byte, 8000)); err != nil {
					break
				}
			}
			expect(t, examine(t, url, Config{Connection: session.Connection{Timeout: time.Second}}), map[string]string{"storage": c.want})
			for stream := range js.StreamNames(t.Context()).Name() {
				if stream != "OTHER" {
					t.Errorf("%s is left", stream)
				}
			}
		})
	}
}
