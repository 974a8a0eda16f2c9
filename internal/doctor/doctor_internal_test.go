package doctor

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry"
	"omiappreg.org/keyrotation/streams"
)

// examine looks at what is behind url, with the flags that a person gave.
func examine(t *testing.T, url string, flags Config) map[string]check {
	t.Helper()
	flags.NATS, flags.Timeout = process.NATS{URL: url}, cmp.Or(flags.Timeout, 10*time.Second)
	target, named, err := flags.Target()
	if err != nil {
		t.Fatal(err)
	}
	d := newDoctor(&flags, target, named)
	d.swept = 0
	if err := d.examine(t.Context()); err != nil {
		t.Fatal(err)
	}
	found := map[string]check{}
	for _, c := range d.checks {
		if _, twice := found[c.Name]; twice {
			t.Errorf("two checks are called %q", c.Name)
		}
		if (c.State == stateOK) != (c.Fix == "") {
			t.Errorf("%+v: what is not well says how to fix it, and only that", c)
		}
		found[c.Name] = c
	}
	return found
}

// expect holds what was found against states, or states and a part of the detail after a blank.
func expect(t *testing.T, found map[string]check, want map[string]string) {
	t.Helper()
	for name, line := range want {
		want, detail, _ := strings.Cut(line, " ")
		if c, ok := found[name]; !ok || c.State != state(want) || !strings.Contains(c.Detail, detail) {
			t.Errorf("%s: found %+v, want %s", name, c, line)
		}
	}
}

func jetStream(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(testenv.Connect(t, url))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestDoctorStreams(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil func(*jetstream.StreamConfig) // nil result: the stream is missing
		of    string
		want  string
	}{
		"as they should be": {want: "ok"},
		"missing":           {of: streams.Receipts, want: "wrong it does not exist"},
		"subjects": {
			func(c *jetstream.StreamConfig) { c.Subjects = []string{"omi.v1.requests.rotation.>"} }, streams.Requests,
			"wrong subjects: [omi.v1.requests.rotation.>] instead of",
		},
		"retention": {
			func(c *jetstream.StreamConfig) { c.Retention = jetstream.LimitsPolicy }, streams.Requests,
			"wrong retention: Limits instead of WorkQueue",
		},
		"storage": {
			func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, streams.Receipts,
			"wrong storage: Memory instead of File",
		},
		"discard": {
			func(c *jetstream.StreamConfig) { c.Discard, c.DiscardNewPerSubject = jetstream.DiscardOld, false }, streams.Requests,
			"wrong discard policy: DiscardOld instead of DiscardNew; discard policy of a subject: false instead of true",
		},
		"delete": {
			func(c *jetstream.StreamConfig) { c.DenyDelete = false }, streams.Invalidations,
			"wrong deny delete: false instead of true",
		},
		"purge": {
			func(c *jetstream.StreamConfig) { c.DenyPurge = false }, streams.Invalidations,
			"wrong deny purge: false instead of true",
		},
		"no acknowledgements": {
			func(c *jetstream.StreamConfig) { c.NoAck = true }, streams.Requests, "wrong no acknowledgements: true",
		},
		"age": {
			func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, streams.Invalidations,
			"wrong age of messages: 1h0m0s instead of 0s",
		},
		"kept": {
			func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 }, streams.Invalidations,
			"wrong messages kept of a subject: 1 instead of 64",
		},
		"largest": {
			func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1 << 20 }, streams.Requests,
			"wrong largest message: 1048576 instead of 8192",
		},
		"no bound of a subject": {
			func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject, c.DiscardNewPerSubject = 0, false }, streams.Requests,
			"wrong discard policy of a subject: false instead of true; messages kept of a subject: 0 instead of 128",
		},
		"another bound of a subject": {
			func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 7 }, streams.Requests, "ok messages: 0",
		},
		"no bound": {
			func(c *jetstream.StreamConfig) { c.MaxBytes = 0 }, streams.Receipts, "wrong bound of its size: none instead of some",
		},
		"a window of duplicates that strangers can fill": {
			func(c *jetstream.StreamConfig) { c.Duplicates = 2 * time.Minute }, streams.Requests,
			"wrong window of duplicates: 2m0s instead of 1s",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := testenv.NewBroker(t).URL()
			js, want := jetStream(t, url), map[string]string{}
			for _, config := range []jetstream.StreamConfig{
				streams.RequestsConfig(), streams.InvalidationsConfig(), streams.ReceiptsConfig(),
			} {
				config.MaxBytes = 1 << 20
				want["stream "+config.Name] = "ok messages: 0"
				if config.Name == c.of {
					want["stream "+config.Name] = c.want
					if c.spoil == nil {
						continue
					}
					c.spoil(&config)
				}
				if _, err := js.CreateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
			}
			expect(t, examine(t, url, Config{}), want)
		})
	}
}

// TestDoctorAdvice: what to do depends on whether the process runs.
func TestDoctorAdvice(t *testing.T) {
	t.Parallel()
	want := streams.ReceiptsConfig()
	other := want
	other.MaxAge = time.Hour
	for _, c := range []struct {
		registry error // of a question to it
		want     []string
	}{
		{nil, []string{"restart omi-registry, which sets", "omi-registry runs, and makes it again", "restart omi-registry, which answers"}},
		{nats.ErrNoResponders, []string{"start omi-registry, which sets", "start omi-registry, which makes it", "start omi-registry"}},
	} {
		d := newDoctor(&Config{}, events.Target{}, false)
		d.answers = map[string]error{registryProgram: c.registry}
		d.examineStream("limits", &jetstream.StreamInfo{Config: other}, want)
		d.wrong("missing", "", d.madeBy(registryProgram))
		d.examineDurable("durable", &jetstream.ConsumerInfo{Stream: streams.Requests, Config: streams.RegistryConsumer()})
		for i, want := range c.want {
			if got := d.checks[i]; !strings.HasPrefix(got.Fix, want) {
				t.Errorf("%+v, want %q", got, want)
			}
		}
	}
}

func TestDoctorDurables(t *testing.T) {
	t.Parallel()
	url := testenv.NewBroker(t).URL()
	js := jetStream(t, url)
	if err := registry.EnsureStreams(t.Context(), js, 0); err != nil {
		t.Fatal(err)
	}
	expect(t, examine(t, url, Config{}), map[string]string{
		"durable registry": "wrong it does not exist", "durable authsub": "warning it does not exist",
		"durable billingsub": "warning it does not exist",
	})
	filtered := streams.SubscriberConsumer("authsub-web") // which stands for authsub
	filtered.Metadata = map[string]string{streams.InstanceMetadata: "web"}
	filtered.FilterSubject = "omi.v1.invalidations.org.example.>"
	newest := streams.SubscriberConsumer("billingsub")
	newest.DeliverPolicy = jetstream.DeliverNewPolicy
	another, limited := streams.SubscriberConsumer("another"), streams.SubscriberConsumer("limited")
	another.MaxRequestBatch, limited.MaxRequestMaxBytes = 100, 1000
	for _, config := range []jetstream.ConsumerConfig{filtered, newest, another, limited} {
		if _, err := js.CreateConsumer(t.Context(), streams.Invalidations, config); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := js.CreateConsumer(t.Context(), streams.Requests, streams.RegistryConsumer()); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), events.InvalidationSubject+"org.example.cms", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	// The broker tells a publisher before it tells the consumers.
	testenv.Eventually(t, 10*time.Second, "a message waits", func() error {
		consumer, err := js.Consumer(t.Context(), streams.Invalidations, "another")
		if err == nil && consumer.CachedInfo().NumPending == 0 {
			err = errors.New("none")
		}
		return err
	})
	expect(t, examine(t, url, Config{}), map[string]string{
		"durable registry":    "warning messages waiting: 0, in hand: 0, no process is fetching now",
		"durable authsub-web": "wrong filter: omi.v1.invalidations.org.example.> instead of",
		"durable billingsub":  "wrong deliver policy: new instead of all",
		"durable another":     "warning changes don't wait for it (unless --wait-for of omi-registry names it), at most 100 messages a pull",
		"durable limited":     "warning bytes: 1000",
	})
}

func TestDoctorNoJetStream(t *testing.T) {
	t.Parallel()
	found := examine(t, testenv.ServeOptions(t, &server.Options{}), Config{})
	expect(t, found, map[string]string{"broker": "ok", "jetstream": "wrong", "registry": "wrong no registry answers"})
	if _, ok := found["stream "+streams.Requests]; ok {
		t.Error("streams are looked for where there is no JetStream")
	}
}

// TestDoctorPermissions holds the accounts of docs/operations.md against what the tool finds, and sees that finding it
// stores nothing.
func TestDoctorPermissions(t *testing.T) {
	t.Parallel()
	account := func(name string, publish ...string) *server.User {
		return &server.User{Username: name, Password: "secret", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: publish}, Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>", "omi.v1.answers.org.example.shop.*"}},
		}}
	}
	read := []string{"$JS.API.DIRECT.GET.OMI_RECEIPTS.omi.v1.receipts.>"}
	deaf := account("deaf", "omi.>")
	deaf.Permissions.Subscribe.Allow = []string{"nothing"}
	hard := account("hard-of-hearing", read...)
	hard.Permissions.Subscribe.Allow = []string{"_INBOX.>"}
	url := testenv.ServeOptions(t, &server.Options{JetStream: true, Users: []*server.User{
		{Username: "operator", Password: "secret"}, deaf,
		account("service", slices.Concat(read, []string{"omi.v1.requests.rotation.org.example.shop.cms", "omi.v1.lookup.>"})...),
		account("developer",
			slices.Concat(read, []string{"omi.v1.requests.binding.org.example.shop.>", "omi.v1.requests.revocation.org.example.shop.>"})...),
		account("mute", "omi.v1.requests.rotation.org.example.shop.cms"), hard,
	}})
	as := func(user string) string { return strings.Replace(url, "://", "://"+user+":secret@", 1) }
	js := jetStream(t, as("operator"))
	if err := registry.EnsureStreams(t.Context(), js, 0); err != nil {
		t.Fatal(err)
	}
	cms := session.OptionalTarget{AppID: "org.example.shop", ServiceID: "cms"}

	expect(t, examine(t, as("service"), Config{OptionalTarget: cms}), map[string]string{
		"broker": "ok service:xxxxx@", "jetstream": "warning may not ask", "stream OMI_REQUESTS": "warning may not look",
		"registry": "wrong no registry answers", "auth": "warning may not ask", "clock": "warning neither the broker's time nor the registry's is known",
		"publish rotation": "ok allowed", "publish binding": "ok not needed", "publish revocation": "ok not needed",
		"read receipts":         "ok",
		"publish invalidations": "ok not allowed", "publish receipts": "ok not allowed",
	})
	blog := session.OptionalTarget{AppID: "org.example.shop", ServiceID: "blog"}
	expect(t, examine(t, as("service"), Config{OptionalTarget: blog}), map[string]string{
		"publish rotation": "wrong omi.v1.requests.rotation.org.example.shop.blog", "read receipts": "ok",
	})
	master := Config{OptionalTarget: cms, MasterKey: "none.pem"}
	expect(t, examine(t, as("service"), master),
		map[string]string{"publish binding": "wrong", "publish revocation": "wrong", "publish rotation": "ok allowed"})
	expect(t, examine(t, as("developer"), master),
		map[string]string{"publish binding": "ok allowed", "publish revocation": "ok allowed", "publish rotation": "ok not needed"})
	expect(t, examine(t, as("mute"), Config{OptionalTarget: cms}), map[string]string{
		"publish rotation": "ok", "read receipts": "wrong $JS.API.DIRECT.GET.OMI_RECEIPTS", "registry": "wrong may not ask",
	})
	expect(t, examine(t, as("hard-of-hearing"), Config{OptionalTarget: cms}), map[string]string{
		"read receipts": "wrong omi.v1.answers.org.example.shop.cms",
	})
	expect(t, examine(t, as("operator"), Config{OptionalTarget: cms}), map[string]string{
		"jetstream": "ok", "stream OMI_REQUESTS": "ok", "publish rotation": "ok allowed", "clock": "ok",
		"publish invalidations": "warning", "publish receipts": "warning",
	})
	expect(t, examine(t, as("operator"), Config{}),
		map[string]string{"publish invalidations": "warning", "publish receipts": "warning"})
	expect(t, examine(t, as("deaf"), Config{}), map[string]string{"broker": "ok", "answers": "wrong"})

	for _, name := range []string{streams.Requests, streams.Invalidations, streams.Receipts} {
		stream, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if last := stream.CachedInfo().State.LastSeq; last != 0 {
			t.Errorf("%s has stored %d messages", name, last)
		}
	}
}

func TestDoctorClock(t *testing.T) {
	t.Parallel()
	now := time.Unix(1705412600, 0)
	for _, c := range []struct {
		theirs time.Duration // after we asked; the way there and back takes 2 s
		skew   time.Duration
		want   string
	}{
		{time.Second, 0, "ok agrees"},
		{2 * time.Second, 0, "ok agrees"},
		{-3 * time.Second, 0, "ok 4s ahead of"},
		{-6 * time.Second, 0, "warning 7s ahead of"},
		{8 * time.Second, 0, "warning 7s behind"},
		{301 * time.Second, 0, "warning 5m0s behind"},
		{302 * time.Second, 0, "wrong 5m1s behind"},
		{-400 * time.Second, 0, "wrong 6m41s ahead of"},
		{12 * time.Second, 10 * time.Second, "wrong the registry refuses requests from 10s on"},
		{400 * time.Second, time.Hour, "warning behind"},
	} {
		var reading clockReading
		reading.read(now, now.Add(2*time.Second), now.Add(c.theirs))
		reading.read(now, now.Add(9*time.Second), now) // which says it less exactly
		expect(t, map[string]check{"clock": reading.judge(c.skew)}, map[string]string{"clock": c.want})
	}
	var registry clockReading
	registry.readRegistry(now, now.Add(2*time.Second), now.Unix()-60) // which is up to a second earlier than its time
	expect(t, map[string]check{"clock": registry.judge(0)}, map[string]string{"clock": "warning 1m0.5s ahead of the registry's"})
	registry.read(now, now, now)
	registry.readRegistry(now, now, 0)
	expect(t, map[string]check{"clock": registry.judge(0)}, map[string]string{"clock": "ok agrees with the broker's"})
	var none clockReading
	none.read(now, now, time.Time{})
	expect(t, map[string]check{"clock": none.judge(0)}, map[string]string{"clock": "warning neither the broker's time nor the registry's is known"})
}

func TestLocal(t *testing.T) {
	t.Parallel()
	for server, want := range map[string]bool{
		"nats://127.0.0.1:4222": true, "nats://[::1]:4222": true, "nats://localhost:4222": true,
		"nats://10.0.0.1:4222": false, "nats://broker.example.org:4222": false, "::": false,
	} {
		if local(server) != want {
			t.Errorf("local(%q) is not %t", server, want)
		}
	}
}
