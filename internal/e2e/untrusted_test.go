package e2e_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

// TestRegistryKeyChanged: the registry signs with another key now, and a client that trusts the
// earlier one alone sends it nothing. It says why, also about a request that was under way.
func TestRegistryKeyChanged(t *testing.T) {
	t.Parallel()
	useSources(t)
	d := newDeployment(t, testenv.Database(t, testenv.SQLite))
	asked, idle := newDomain(t, d, "under-way"), newDomain(t, d, "idle")
	for _, s := range []*domain{asked, idle} {
		s.bind()
	}
	before := asked.open(asked.store())
	d.holdRequests()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	waits := make(chan error, 1)
	go func() {
		_, err := before.Rotate(ctx)
		waits <- err
	}()
	testenv.Eventually(t, patience, "the request is stored", func() error {
		if len(asked.told.of(client.Stored)) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	both := d.changeRegistryKey()
	stored := d.requestsStored()

	c := idle.open(idle.store())
	for name, change := range map[string]func(context.Context) (events.Receipt, error){
		"Rotate":          c.Rotate,
		"RotateWithGrace": func(ctx context.Context) (events.Receipt, error) { return c.RotateWithGrace(ctx, 0) },
		"Reset":           func(ctx context.Context) (events.Receipt, error) { return c.Reset(ctx, d.master.Private()) },
	} {
		if _, err := change(ctx); !errors.Is(err, client.ErrUntrusted) || !errors.Is(err, client.ErrNotBegun) {
			t.Fatalf("%s, at a registry that is not trusted: %v", name, err)
		}
	}
	if err := <-waits; !errors.Is(err, client.ErrUntrusted) || !errors.Is(err, client.ErrNoAnswer) {
		t.Errorf("the request that is under way: %v", err)
	}
	cancel()
	if told := asked.told.of(client.Retrying); !slices.ContainsFunc(told, func(e client.Event) bool { return errors.Is(e.Err, client.ErrUntrusted) }) {
		t.Errorf("no event names the cause: %v", told)
	}
	if now := d.requestsStored(); now != stored {
		t.Errorf("%d requests were sent to a registry that is not trusted", now-stored)
	}

	// With both keys trusted, the request that was under way is answered, and the others can begin.
	before.Close()
	c.Close()
	d.releaseRequests()
	d.trust = both
	for _, s := range []*domain{asked, idle} {
		c := s.open(s.store())
		if kind, receipt, err := c.Resume(t.Context()); kind != "" && (err != nil || receipt.Sequence != 2) {
			t.Errorf("go on with what was under way: %+v, %v", receipt, err)
		} else if kind == "" {
			if _, err := c.Rotate(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if sequence := s.record().Sequence; sequence != 2 {
			t.Errorf("%s is at sequence %d, want 2", s.target, sequence)
		}
	}
}

// changeRegistryKey starts the registry again with another signing key, and returns a trust in
// both.
func (d *deployment) changeRegistryKey() events.Trust {
	d.t.Helper()
	old := d.registryKey()
	if err := d.registry.interrupt(); err != nil {
		d.t.Fatal(err)
	}
	d.command("keygen", "--out", "other.pem")
	d.registry.command[slices.Index(d.registry.command, "registry.pem")] = "other.pem"
	d.registry.command = append(d.registry.command, "--trust", old.String())
	if err := d.registry.start(); err != nil {
		d.t.Fatal(err)
	}
	testenv.Eventually(d.t, patience, "the registry answers", func() error {
		_, err := registryclient.RegistryInfo(d.t.Context(), d.js.Conn())
		return err
	})
	key, err := keyfile.Read(d.folder + "/other.pem")
	if err != nil {
		d.t.Fatal(err)
	}
	both, err := events.NewTrust(origin, old, key.Public())
	if err != nil {
		d.t.Fatal(err)
	}
	return both
}

// requestsStored is how many requests the stream ever took.
func (d *deployment) requestsStored() uint64 {
	d.t.Helper()
	stream, err := d.js.Stream(d.t.Context(), streams.Requests)
	if err != nil {
		d.t.Fatal(err)
	}
	return stream.CachedInfo().State.LastSeq
}

// holdRequests keeps requests from the registry, which goes on answering lookups, until
// releaseRequests.
func (d *deployment) holdRequests() {
	d.t.Helper()
	if _, err := d.js.PauseConsumer(d.t.Context(), streams.Requests, streams.RegistryDurable, time.Now().Add(time.Hour)); err != nil {
		d.t.Fatal(err)
	}
}

func (d *deployment) releaseRequests() {
	d.t.Helper()
	if _, err := d.js.ResumeConsumer(d.t.Context(), streams.Requests, streams.RegistryDurable); err != nil {
		d.t.Fatal(err)
	}
}
