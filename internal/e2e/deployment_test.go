package e2e_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

const origin = "omiappreg.org"

// instanceEnv names Auth's process, which has authDurable then.
const instanceEnv = "OMI_INSTANCE=one"

var authDurable = streams.InstanceDurable(streams.AuthDurable, "one")

// deployment is a broker, and the three processes as an operator starts them.
type deployment struct {
	t         *testing.T
	folder    string
	url       string // the registry's database
	js        jetstream.JetStream
	trust     events.Trust
	app       events.AppID
	master    events.SigningKey
	registry  *daemon
	auth      *daemon
	billing   *daemon
	processes []*daemon // all three
	durables  []string  // of the subscribers
}

// newDeployment returns when all three are ready.
func newDeployment(t *testing.T, url string) *deployment {
	t.Helper()
	return newDeploymentAt(t, testenv.NewBroker(t), url)
}

// newDeploymentAt is newDeployment with this broker.
func newDeploymentAt(t *testing.T, broker *testenv.Broker, url string) *deployment {
	t.Helper()
	d := prepare(t, url, testenv.Connect(t, broker.URL()))
	env := []string{"OMI_NATS_URL=" + broker.URL(), "OMI_HTTP_ADDR=127.0.0.1:0", "OMI_TRUST=" + d.registryKey().String(), instanceEnv}
	daemonOf := func(name string, command ...string) *daemon {
		p := &daemon{name: name, folder: d.folder, env: env, command: command}
		d.processes = append(d.processes, p)
		return p
	}
	d.registry = daemonOf("registry", "omi-registry", "--signing-key", "registry.pem", "--rate-limit=-1", "--master-rate-limit=-1", "--master-quota=-1", "--database-url", url)
	d.auth = daemonOf("auth", "omi-authsub")
	d.billing = daemonOf("billing", "omi-billingsub")
	t.Cleanup(d.close)
	for _, p := range d.processes {
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
	}
	d.awaitReady()
	return d
}

// prepare makes the registry's key, and its database with one app in it. No process runs yet.
func prepare(t *testing.T, url string, nc *nats.Conn) *deployment {
	t.Helper()
	d := &deployment{
		t: t, folder: t.ArtifactDir(), url: url, master: events.GenerateSigningKey(),
		durables: []string{authDurable, streams.BillingDurable},
	}
	var err error
	if d.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	if d.app, err = events.ParseAppID("org.example.shop"); err != nil {
		t.Fatal(err)
	}
	d.command("keygen", "--out", "registry.pem")
	if d.trust, err = events.NewTrust(origin, d.registryKey()); err != nil {
		t.Fatal(err)
	}
	d.command("app", "add", "--app-id", d.app.String(), "--master-key", d.master.Public().String(), "--database-url", url)
	return d
}

// close ends what a failed test left running, and shows the end of what it said.
func (d *deployment) close() {
	const tail = 4 << 10
	for _, p := range d.processes {
		p.stop()
		if log, err := os.ReadFile(p.log()); err == nil && d.t.Failed() {
			d.t.Logf("%s said at last:\n%s", p.name, log[max(0, len(log)-tail):])
		}
	}
}

func (d *deployment) awaitReady() {
	d.t.Helper()
	for _, p := range d.processes {
		testenv.Eventually(d.t, patience, p.name+" is ready", p.ready)
	}
}

// command runs omi-registry to its end, and returns what it prints.
func (d *deployment) command(args ...string) []byte {
	d.t.Helper()
	out, err := d.output(args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// output is command, but it returns the error.
func (d *deployment) output(args ...string) ([]byte, error) {
	command := exec.Command(filepath.Join(binaries, "omi-registry"), args...)
	command.Dir, command.Env = d.folder, []string{}
	var said bytes.Buffer
	command.Stderr = &said
	out, err := command.Output()
	if err != nil {
		err = fmt.Errorf("omi-registry %s: %w\n%s%s", args[0], err, out, said.Bytes())
	}
	return out, err
}

// registryKey is the registry's public key.
func (d *deployment) registryKey() events.PublicKey {
	d.t.Helper()
	key, err := keyfile.Read(filepath.Join(d.folder, "registry.pem"))
	if err != nil {
		d.t.Fatal(err)
	}
	return key.Public()
}

// settle waits until no message is left: not in the streams, not in the outbox. From then on
// nothing moves.
func (d *deployment) settle() {
	d.t.Helper()
	d.awaitReady()
	for stream, durables := range map[string][]string{
		streams.Requests:      {streams.RegistryDurable},
		streams.Invalidations: d.durables,
	} {
		for _, durable := range durables {
			testenv.Eventually(d.t, patience, durable+" has acknowledged everything", func() error {
				s, err := d.js.Stream(d.t.Context(), stream)
				if err != nil {
					return err
				}
				consumer, err := s.Consumer(d.t.Context(), durable)
				if err != nil {
					return err
				}
				info, state := consumer.CachedInfo(), s.CachedInfo().State
				if info.NumPending > 0 || info.NumAckPending > 0 {
					return fmt.Errorf("%d messages wait, %d are under way", info.NumPending, info.NumAckPending)
				}
				// The broker tells consumers of a message a little later.
				if state.Msgs > 0 && info.AckFloor.Stream < state.LastSeq {
					return fmt.Errorf("acknowledged up to %d of %d", info.AckFloor.Stream, state.LastSeq)
				}
				return nil
			})
		}
	}
	testenv.Eventually(d.t, patience, "the outbox is empty", func() error {
		report, err := d.check()
		if err != nil && !report.onlyOutbox() {
			d.t.Fatal(err)
		}
		if err == nil && report.Outbox > 0 {
			err = fmt.Errorf("%d messages", report.Outbox)
		}
		return err
	})
}

// report is what omi-registry check prints.
type report struct {
	Services   int   `json:"services"`
	Changes    int   `json:"changes"`
	Outbox     int   `json:"outbox"`
	Violations []any `json:"violations"`
}

// onlyOutbox reports whether nothing is wrong but that a message has waited in the outbox for long.
// What a registry commits whose clock is behind looks so at once.
func (r report) onlyOutbox() bool {
	return len(r.Violations) == 1 && strings.Contains(fmt.Sprint(r.Violations), "wait in the outbox")
}

// check runs omi-registry check, which returns an error where it finds something wrong.
func (d *deployment) check() (r report, err error) {
	d.t.Helper()
	out, err := d.output("check", "--json", "--trust", d.registryKey().String(), "--database-url", d.url)
	err = errors.Join(err, json.Unmarshal(out, &r))
	return r, err
}

// checkRegistry holds the database against what was answered.
func (d *deployment) checkRegistry(services, changes int) {
	d.t.Helper()
	got, err := d.check()
	if err != nil {
		d.t.Fatal(err)
	}
	if diff := cmp.Diff(report{services, changes, 0, []any{}}, got); diff != "" {
		d.t.Errorf("omi-registry check (-want +got):\n%s", diff)
	}
}

// checkStream holds the stream of events against the receipts: each change has its event, once.
func (d *deployment) checkStream(services []*service) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 10*patience) // by default 5 s
	defer cancel()
	stream, err := d.js.Stream(ctx, streams.Invalidations)
	if err != nil {
		d.t.Fatal(err)
	}
	changes := 0
	for _, s := range services {
		changes += len(s.events)
		published := map[int64][]events.Nonce{}
		for next := uint64(1); ; {
			msg, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(events.InvalidationSubject+s.target.String()))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				break
			}
			if err != nil {
				d.t.Fatal(err)
			}
			e, err := d.trust.Invalidation(msg.Subject, msg.Data)
			if err != nil {
				d.t.Fatal(err)
			}
			published[e.Sequence] = append(published[e.Sequence], e.Nonce)
			next = msg.Sequence + 1
		}
		s.checkEvents(d.t, published)
	}
	if have := stream.CachedInfo().State.Msgs; have != uint64(changes) {
		d.t.Errorf("the stream has %d events, %d changes were committed", have, changes)
	}
}

// checkEvents holds a service's events, by their sequence, against its receipts.
func (s *service) checkEvents(t *testing.T, published map[int64][]events.Nonce) {
	t.Helper()
	want := map[int64][]events.Nonce{}
	for i, nonce := range s.events {
		want[int64(i+1)] = []events.Nonce{nonce}
	}
	if diff := cmp.Diff(want, published, cmp.AllowUnexported(events.Nonce{})); diff != "" {
		t.Errorf("%s: events by sequence (-receipts +stream):\n%s", s.target, diff)
	}
}

// checkAuth asks Auth about a signature of each service's newest keys. The registry is stopped
// first, for Auth would ask it about what it does not know itself.
func (d *deployment) checkAuth(services []*service) {
	d.t.Helper()
	if err := d.registry.interrupt(); err != nil {
		d.t.Error(err)
	}
	d.checkVerifying(d.auth, services)
	d.checkSetAside("omi-authsub", databaseOf("omi-authsub"))
}

// checkVerifying asks one Auth.
func (d *deployment) checkVerifying(auth *daemon, services []*service) {
	d.t.Helper()
	const newest = 4
	for _, s := range services {
		for _, l := range s.lives[max(0, len(s.lives)-newest):] {
			d.checkVerify(auth, s, l)
		}
	}
}

// databaseOf is where a subscriber keeps its database by default.
func databaseOf(program string) string { return "sqlite:" + program + ".db" }

func (d *deployment) checkVerify(auth *daemon, s *service, l life) {
	d.t.Helper()
	want := events.VerifyAnswer{
		Result: events.Accepted, Key: events.KeyCurrent, PublicKey: l.key.Public(), Sequence: int64(len(s.events)),
	}
	switch now := time.Now().Unix(); {
	case l.until == endless:
	case l.until > now+int64(asking.Seconds()): // it won't end before the answer
		want.Key, want.Expires = events.KeyGrace, l.until
	case l.until > now: // it may have ended by the answer
		return
	case s.revoked:
		want = events.VerifyAnswer{Result: events.Refused, Reason: events.RevokedService}
	default:
		want = events.VerifyAnswer{Result: events.Refused, Reason: events.ExpiredKey}
	}
	message := []byte("a request")
	got := ask[events.VerifyAnswer](d, auth, "/v1/verify", map[string]string{
		"app_id": s.target.App.String(), "service_id": s.target.Service.String(),
		"message": base64.RawURLEncoding.EncodeToString(message), "signature": l.key.Sign(message).String(),
	})
	got.AsOf = 0 // whenever it was
	if got != want {
		d.t.Errorf("%s: %s says %+v, want %+v", s.target, auth.name, got, want)
	}
}

// checkBilling asks Billing about every key that there ever was, at the first and at the last
// second of its life.
func (d *deployment) checkBilling(services []*service) {
	d.t.Helper()
	d.checkAttributing(d.billing, services)
	d.checkSetAside("omi-billingsub", databaseOf("omi-billingsub"))
}

// checkAttributing asks one Billing.
func (d *deployment) checkAttributing(billing *daemon, services []*service) {
	d.t.Helper()
	for _, s := range services {
		for _, l := range s.lives {
			want := events.AttributeAnswer{Result: events.Valid, AppID: s.target.App, ServiceID: s.target.Service, From: l.from}
			if l.until != endless {
				want.Until = &l.until
			}
			if l.until == l.from { // an emergency in the second in which it came
				want.Result, want.Reason = events.Invalid, events.ExpiredKey
			}
			for _, at := range []int64{l.from, max(l.from, min(l.until, l.from+1<<20)-1)} {
				got := ask[events.AttributeAnswer](d, billing, "/v1/attribute", map[string]any{"public_key": l.key.Public(), "at": at})
				if diff := cmp.Diff(want, got, cmp.AllowUnexported(events.AppID{}, events.ServiceID{})); diff != "" {
					d.t.Errorf("%s: %s on %s at %d (-receipts +answer):\n%s", s.target, billing.name, l.key.Public(), at, diff)
				}
			}
		}
	}
}

// checkSetAside: nothing that the registry published was anything but an event.
func (d *deployment) checkSetAside(program, url string) {
	d.t.Helper()
	command := exec.Command(filepath.Join(binaries, program), "set-aside", "--database-url", url)
	command.Dir, command.Env = d.folder, []string{}
	if out, err := command.CombinedOutput(); err != nil || string(out) != "0 messages were set aside.\n" {
		d.t.Errorf("%s set-aside: %v\n%s", program, err, out)
	}
}

// stop interrupts what still runs: after all this, each stops as it should.
func (d *deployment) stop() {
	d.t.Helper()
	for _, p := range []*daemon{d.auth, d.billing} {
		if err := p.interrupt(); err != nil {
			d.t.Error(err)
		}
	}
}

// checkApplied holds the nonces that a subscriber has applied against the number of changes. Its
// answers alone would not show a lost event: Billing asks the registry to fill a gap, and Auth
// needs no more than the newest.
func (d *deployment) checkApplied(url string, changes int) {
	d.t.Helper()
	if file, ok := strings.CutPrefix(url, "sqlite:"); ok {
		url = "sqlite:" + filepath.Join(d.folder, file)
	}
	db, err := sqldb.Open(d.t.Context(), url, slog.New(slog.DiscardHandler))
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = db.Close() }() // it only read
	var applied int
	if err := db.QueryRow(d.t.Context(), "SELECT COUNT(*) FROM applied").Scan(&applied); err != nil {
		d.t.Fatal(err)
	}
	if applied != changes {
		d.t.Errorf("%s has applied %d events, %d changes were committed", path.Base(url), applied, changes)
	}
}

// checkNoAlarm looks for processes that took their database for a restored one: none was.
func (d *deployment) checkNoAlarm() {
	d.t.Helper()
	for _, p := range d.processes {
		log, err := os.ReadFile(p.log())
		if err != nil {
			d.t.Fatal(err)
		}
		for _, alarm := range []string{"restored from a", "issued twice", "created again"} {
			if bytes.Contains(log, []byte(alarm)) {
				d.t.Errorf("%s says: %s", p.name, alarm)
			}
		}
	}
}

// ask asks a process over HTTP.
func ask[T any](d *deployment, p *daemon, path string, question any) (answer T) {
	d.t.Helper()
	body, err := json.Marshal(question)
	if err != nil {
		d.t.Fatal(err)
	}
	response, err := p.do(http.MethodPost, path, string(body))
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		d.t.Fatalf("%s%s: %s", p.name, path, response.Status)
	}
	if err := json.UnmarshalRead(response.Body, &answer); err != nil {
		d.t.Fatal(err)
	}
	return answer
}
