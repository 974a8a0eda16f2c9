package e2e_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// domain is a Domain Service that uses the client package, against a deployment of real processes.
type domain struct {
	*deployment
	t      *testing.T
	target events.Target
	folder string
	told   *told
}

// told is what a client says of itself.
type told struct {
	mu     sync.Mutex
	events []client.Event
}

func (l *told) add(e client.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
}

// of returns the events of a kind.
func (l *told) of(kind client.EventKind) (found []client.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// newDomain returns a service that has a first key, and is not bound yet.
func newDomain(t *testing.T, d *deployment, name string) *domain {
	t.Helper()
	id, err := events.ParseServiceID(name)
	if err != nil {
		t.Fatal(err)
	}
	s := &domain{
		deployment: d, t: t, target: events.Target{App: d.app, Service: id}, folder: filepath.Join(t.TempDir(), "keys"), told: &told{},
	}
	store := s.store()
	if _, err := store.Generate(t.Context(), client.Current); err != nil {
		t.Fatal(err)
	}
	s.close(store)
	return s
}

func (s *domain) store() *client.Folder {
	s.t.Helper()
	store, err := client.OpenFolder(s.folder)
	if err != nil {
		s.t.Fatal(err)
	}
	return store
}

func (s *domain) close(store *client.Folder) {
	s.t.Helper()
	if err := store.Close(); err != nil {
		s.t.Fatal(err)
	}
}

func (s *domain) sender() registryclient.Sender {
	return registryclient.Sender{JetStream: s.js, Trust: s.trust}
}

// bind binds the service to its current key, as the developer does, and waits until both
// subscribers know it.
func (s *domain) bind() {
	s.t.Helper()
	store := s.store()
	defer s.close(store)
	key, err := store.Signer(s.t.Context(), client.Current)
	if err != nil {
		s.t.Fatal(err)
	}
	draft := events.Draft{Kind: events.Binding, Target: s.target, Timestamp: time.Now().Unix(), Nonce: events.NewNonce()}
	m, err := registryclient.Sign(draft, s.master.Private(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	receipt, err := s.sender().Send(s.t.Context(), s.target, m, nil)
	if err != nil || receipt.Event != events.RequestCommitted {
		s.t.Fatalf("bind: %+v, %v", receipt, err)
	}
	testenv.Eventually(s.t, patience, "both subscribers know the service", func() error {
		record := s.record()
		for _, durable := range []string{authDurable, streams.BillingDurable} {
			if !record.Propagation[durable] {
				return fmt.Errorf("%s has not applied the binding: %v", durable, record.Propagation)
			}
		}
		return nil
	})
}

// open starts the service's client on a store.
func (s *domain) open(store client.KeyStore) *client.Client {
	s.t.Helper()
	c, err := client.Open(s.t.Context(), client.Config{
		Target: s.target, Store: store, Conn: s.js.Conn(), Trust: s.trust, Notify: s.told.add,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// accepted signs once with the client, and asks Auth.
func (s *domain) accepted(c *client.Client) events.VerifyAnswer {
	s.t.Helper()
	answer := s.verify(c.Signer())
	if answer.Result != events.Accepted {
		s.t.Errorf("Auth refused what the client's key signed: %+v", answer)
	}
	return answer
}

func (s *domain) verify(by *client.Signer) events.VerifyAnswer {
	s.t.Helper()
	key, _ := by.Key()
	message := []byte("a request")
	signature, err := events.SignWith(key, message)
	if err != nil {
		s.t.Fatal(err)
	}
	return ask[events.VerifyAnswer](s.deployment, s.auth, "/v1/verify", map[string]string{
		"app_id": s.target.App.String(), "service_id": s.target.Service.String(),
		"message": base64.RawURLEncoding.EncodeToString(message), "signature": signature.String(),
	})
}

func (s *domain) record() events.ServiceRecord {
	s.t.Helper()
	record, err := registryclient.Registry{Conn: s.js.Conn(), Trust: s.trust}.ServiceRecord(s.t.Context(), s.target)
	if err != nil {
		s.t.Fatal(err)
	}
	return record
}

// settled waits until nothing is under way, and holds the client against the registry.
func (s *domain) settled(c *client.Client, sequence int64) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	if err := c.Settle(ctx); err != nil {
		s.t.Fatalf("settle: %v; told: %v", err, s.told.events)
	}
	record := s.record()
	_, public := c.Signer().Key()
	if record.Sequence != sequence || record.Current.PublicKey != public {
		s.t.Errorf("the client signs with %s; want the registry's current key at sequence %d, which has %s at %d",
			public, sequence, record.Current.PublicKey, record.Sequence)
	}
	s.accepted(c)
}

// pause keeps a subscriber from the events, until resume.
func (s *domain) pause(durable string) {
	s.t.Helper()
	if _, err := s.js.PauseConsumer(s.t.Context(), streams.Invalidations, durable, time.Now().Add(time.Hour)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *domain) resume(durable string) {
	s.t.Helper()
	if _, err := s.js.ResumeConsumer(s.t.Context(), streams.Invalidations, durable); err != nil {
		s.t.Fatal(err)
	}
	// The broker gives a resumed consumer what waits with the next message that comes.
	id := fmt.Sprintf("after-%d", time.Now().UnixNano())
	newDomain(s.t, s.deployment, id).bind()
}

// TestClient is the life of a service's key. One deployment serves all of it.
func TestClient(t *testing.T) {
	t.Parallel()
	useSources(t)
	d := newDeployment(t, testenv.Database(t, testenv.SQLite))
	for name, test := range map[string]func(*domain){
		"rotates":                rotates,
		"resets-lost-key":        resetsLostKey,
		"emergency-holds":        emergencyHolds,
		"refused-then-replayed":  refusedThenReplayed,
		"foreign-change":         foreignChange,
		"copy-hears":             copyHears,
		"auto-rotates":           autoRotates,
		"killed-between-steps":   killedBetweenSteps,
		"one-process-at-a-time":  oneProcess,
		"rotate-while-under-way": rotateWhileUnderWay,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(newDomain(t, d, name))
		})
	}
}

func rotates(s *domain) {
	s.bind()
	store := s.store()
	defer s.close(store)
	c := s.open(store)
	for i := range int64(3) {
		_, before := c.Signer().Key()
		receipt, err := c.Rotate(s.t.Context())
		if err != nil || receipt.Sequence != i+2 || receipt.PublicKey == before {
			s.t.Fatalf("rotate: %+v, %v", receipt, err)
		}
		s.settled(c, i+2)
	}
	for kind, want := range map[client.EventKind]int{
		client.Requested: 3, client.Committed: 3, client.Applied: 6, client.Promoted: 3, client.Refused: 0, client.Foreign: 0,
	} {
		if got := len(s.told.of(kind)); got != want {
			s.t.Errorf("%d events %s, want %d: %v", got, kind, want, s.told.events)
		}
	}
}

// resetsLostKey: nothing is left but the Master Key.
func resetsLostKey(s *domain) {
	s.bind()
	s.folder = filepath.Join(s.t.TempDir(), "new")
	store := s.store()
	defer s.close(store)
	if _, err := client.Open(s.t.Context(), client.Config{Target: s.target, Store: store, Conn: s.js.Conn(), Trust: s.trust}); !errors.Is(err, client.ErrNoKey) {
		s.t.Errorf("open without a key: %v", err)
	}
	c, err := client.Open(s.t.Context(), client.Config{
		Target: s.target, Store: store, Conn: s.js.Conn(), Trust: s.trust, KeyMayBeMissing: true,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Signer().Sign(nil, nil, nil); !errors.Is(err, client.ErrNoKey) {
		s.t.Errorf("sign without a key: %v", err)
	}
	if _, err := c.Reset(s.t.Context(), s.master.Private()); err != nil {
		s.t.Fatal(err)
	}
	s.settled(c, 2)
}

// emergencyHolds: the old key ends with the commit, so the service does not sign until there is a key
// that is accepted.
func emergencyHolds(s *domain) {
	s.bind()
	store := s.store()
	defer s.close(store)
	c := s.open(store)
	s.accepted(c)
	for i := range int64(5) {
		done := make(chan error, 1)
		go func() {
			_, err := c.RotateWithGrace(context.Background(), 0)
			done <- err
		}()
		testenv.Eventually(s.t, patience, "the request is made", func() error {
			if len(s.told.of(client.Requested)) <= int(i) {
				return errors.New("not yet")
			}
			return nil
		})
		// From here on Sign either waits, or has the new key.
		if err := <-done; err != nil {
			s.t.Fatal(err)
		}
		if answer := s.accepted(c); answer.Sequence != i+2 {
			s.t.Errorf("signed with the key of sequence %d, want %d", answer.Sequence, i+2)
		}
		s.settled(c, i+2)
	}
}

// refusedThenReplayed: a request was refused for a passing reason. Another party sends it again, and
// it is committed.
func refusedThenReplayed(s *domain) {
	store := s.store()
	defer s.close(store)
	c := s.open(store)
	watch, err := s.js.Conn().SubscribeSync(events.RotationSubject + s.target.String())
	if err != nil {
		s.t.Fatal(err)
	}
	refused := &client.RefusedError{}
	if _, err := c.Rotate(s.t.Context()); !errors.As(err, &refused) || refused.Receipt.Reason != events.UnknownService {
		s.t.Fatalf("rotate a service that is not bound: %v", err)
	}
	sent, err := watch.NextMsg(patience)
	if err != nil {
		s.t.Fatal(err)
	}
	c.Close()
	s.close(store)
	s.bind()
	if _, err := s.js.Publish(s.t.Context(), sent.Subject, sent.Data); err != nil { // without its id
		s.t.Fatal(err)
	}
	testenv.Eventually(s.t, patience, "the replay is committed", func() error {
		if have := s.record().Sequence; have != 2 {
			return fmt.Errorf("sequence %d", have)
		}
		return nil
	})
	store = s.store()
	c = s.open(store)
	s.settled(c, 2)
	if receipt, err := c.Rotate(s.t.Context()); err != nil || receipt.Sequence != 3 {
		s.t.Fatalf("rotate: %+v, %v", receipt, err)
	}
	s.settled(c, 3)
}

// foreignChange: the developer has reset the key elsewhere.
func foreignChange(s *domain) {
	s.bind()
	store := s.store()
	defer s.close(store)
	c := s.open(store)
	elsewhere := events.GenerateSigningKey()
	draft := events.Draft{Kind: events.Reset, Target: s.target, Timestamp: time.Now().Unix(), Nonce: events.NewNonce()}
	m, err := registryclient.Sign(draft, s.master.Private(), elsewhere.Private())
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.sender().Send(s.t.Context(), s.target, m, nil); err != nil {
		s.t.Fatal(err)
	}
	refused := &client.RefusedError{}
	if _, err := c.Rotate(s.t.Context()); !errors.As(err, &refused) || refused.Receipt.Reason != events.SupersededKey {
		s.t.Fatalf("rotate with a key that was reset: %v", err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	if err := c.Settle(ctx); !errors.Is(err, client.ErrForeignKey) {
		s.t.Errorf("settle while the key is another's: %v", err)
	}
	if told := s.told.of(client.Foreign); len(told) != 1 || told[0].Key != elsewhere.Public() || !errors.Is(c.Health(), client.ErrForeignKey) {
		s.t.Errorf("told of a foreign key: %v; health: %v", told, c.Health())
	}
	if _, err := c.Reset(s.t.Context(), s.master.Private()); err != nil {
		s.t.Fatal(err)
	}
	s.settled(c, 3)
}

func autoRotates(s *domain) {
	s.bind()
	store := s.store()
	defer s.close(store)
	c := s.open(store)
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.AutoRotate(ctx, client.Schedule{Every: time.Second}) }()
	testenv.Eventually(s.t, patience, "three rotations by schedule", func() error {
		s.accepted(c)
		if have := s.record().Sequence; have < 4 {
			return fmt.Errorf("sequence %d", have)
		}
		return nil
	})
	cancel()
	if err := <-done; err != nil {
		s.t.Error(err)
	}
	if err := c.AutoRotate(s.t.Context(), client.Schedule{}); !errors.Is(err, client.ErrSchedule) {
		s.t.Errorf("a schedule without Every: %v", err)
	}
}

// oneProcess: a tool that changes a key does not follow another process, but says that it has the
// store.
func oneProcess(s *domain) {
	s.bind()
	store := s.store()
	defer s.close(store)
	first := s.open(store)
	config := client.Config{Target: s.target, Store: s.store(), Conn: s.js.Conn(), Trust: s.trust, Exclusive: true}
	if _, err := client.Open(s.t.Context(), config); !errors.Is(err, client.ErrLocked) {
		s.t.Errorf("open it twice: %v", err)
	}
	first.Close()
	second, err := client.Open(s.t.Context(), config)
	if err != nil {
		s.t.Fatalf("open it when the first is closed: %v", err)
	}
	second.Close()
}

// rotateWhileUnderWay: those who ask while a rotation is under way get its receipt, and an
// emergency gets its own.
func rotateWhileUnderWay(s *domain) {
	s.bind()
	store := s.store()
	defer s.close(store)
	c := s.open(store)
	var asking sync.WaitGroup
	receipts := make([]events.Receipt, 9)
	for i := range receipts {
		asking.Go(func() {
			rotate := c.Rotate
			if i == 0 {
				rotate = func(ctx context.Context) (events.Receipt, error) { return c.RotateWithGrace(ctx, 0) }
			}
			var err error
			if receipts[i], err = rotate(context.Background()); err != nil {
				s.t.Error(err)
			}
		})
	}
	asking.Wait()
	for _, r := range receipts[1:] {
		if r.Sequence == receipts[0].Sequence || r.GracePeriodExpiry == r.Timestamp {
			s.t.Errorf("a graceful rotation was answered by %+v", r)
		}
	}
	if receipts[0].GracePeriodExpiry != receipts[0].Timestamp {
		s.t.Errorf("an emergency was answered by %+v", receipts[0])
	}
	s.settled(c, s.record().Sequence)
}
