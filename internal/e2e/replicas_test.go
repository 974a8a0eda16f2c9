package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/testenv"
)

const (
	onOneStore   = 4 // replicas of the service
	onACopy      = 2 // and on a second host
	copyIsBehind = time.Second
	mustRotate   = 20
)

// TestReplicas runs a service as four processes on one key store and two more on a copy of it that
// is a second behind. They sign all the time through 20 rotations by schedule, while the four are
// restarted one by one, and nothing is refused.
func TestReplicas(t *testing.T) {
	t.Parallel()
	testenv.Long(t)
	useSources(t)
	s := newDomain(t, newDeployment(t, testenv.Database(t, testenv.SQLite)), "replicas")
	s.bind()
	r := &replicas{domain: s, copy: filepath.Join(t.TempDir(), "copy")}
	ctx, cancel := context.WithCancel(t.Context())
	var copying sync.WaitGroup
	defer copying.Wait()
	defer cancel()
	s.copyKey(r.copy)
	copying.Go(func() { r.synchronise(ctx) })
	for i := range onOneStore + onACopy {
		if i < onOneStore {
			r.start(fmt.Sprintf("replica-%d", i+1), s.folder, 1000)
		} else {
			r.start(fmt.Sprintf("copy-%d", i+1-onOneStore), r.copy, 0)
		}
	}
	for i, p := range r.all[:onOneStore] {
		r.awaitSequence(int64(2 + (i+1)*mustRotate/(onOneStore+1)))
		end := p.interrupt
		if i%2 == 1 {
			end = p.kill9
		}
		if err := errors.Join(end(), p.start()); err != nil {
			t.Fatal(err)
		}
		r.awaitLine(p, "verified 10", "signs after its restart")
	}
	r.awaitSequence(mustRotate + 1)
	for _, p := range r.all {
		if err := p.interrupt(); err != nil {
			t.Error(err)
		}
		out, err := os.ReadFile(p.out())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			for _, bad := range []string{"refused", "unhealthy", "told " + string(client.Foreign), "told " + string(client.Refused)} {
				if strings.HasPrefix(line, bad) {
					t.Errorf("%s: %s", p.name, line)
				}
			}
		}
		t.Logf("%s: %s; %d promotions", p.name, lastVerified(out), bytes.Count(out, []byte("told promoted")))
	}
}

// copyHears: a replica has a copy of the key that is never synchronised. It learns of a rotation by
// the event of its own service.
func copyHears(s *domain) {
	s.bind()
	folder := filepath.Join(s.t.TempDir(), "copy")
	s.copyKey(folder)
	store := s.store()
	defer s.close(store)
	first := s.open(store)
	told := &told{}
	copied, err := client.OpenFolder(folder)
	if err != nil {
		s.t.Fatal(err)
	}
	second, err := client.Open(s.t.Context(), client.Config{
		Target: s.target, Store: copied, Conn: s.js.Conn(), Trust: s.trust, Notify: told.add,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	defer second.Close()
	s.settled(second, 1)
	if _, err := first.Rotate(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	const soon = 30 * time.Second // it asks after 45 to 60 s if it hears nothing
	testenv.Eventually(s.t, soon, "the copy hears of the rotation", func() error {
		if !errors.Is(second.Health(), client.ErrForeignKey) {
			return errors.New("not yet")
		}
		return nil
	})
	if foreign := told.of(client.Foreign); len(foreign) != 1 || foreign[0].Sequence != 2 {
		s.t.Errorf("told %v", foreign)
	}
	s.accepted(second) // in grace
	s.settled(first, 2)
}

// copyKey makes another key store of the service, as another host has it.
func (s *domain) copyKey(folder string) {
	s.t.Helper()
	content, err := os.ReadFile(client.KeyFile(s.folder))
	file := filepath.Join(folder, "key.pem")
	if err := errors.Join(err, keyfile.MakeFolder(folder), keyfile.WriteFile(file, file, content)); err != nil {
		s.t.Fatal(err)
	}
}

// replicas are processes of one service.
type replicas struct {
	*domain
	copy string // the folder of the second host's key store
	all  []*daemon
}

// start starts a replica on a key store; each of them rotates by its schedule, if it leads.
func (r *replicas) start(name, folder string, rotateEachMS int64) {
	r.t.Helper()
	addr, err := r.auth.addr()
	if err != nil {
		r.t.Fatal(err)
	}
	p := r.serviceProcess(name, &serviceConfig{
		Folder: folder, Signing: []string{"http://" + addr + "/v1/verify"}, Replica: true, RotateEachMS: rotateEachMS,
	})
	if err := p.start(); err != nil {
		r.t.Fatal(err)
	}
	r.all = append(r.all, p)
}

// synchronise copies the current key to the second host, as it was a second ago.
func (r *replicas) synchronise(ctx context.Context) {
	type version struct {
		content []byte
		at      time.Time
	}
	var seen []version
	for ctx.Err() == nil {
		content, err := os.ReadFile(client.KeyFile(r.folder))
		if err == nil && (len(seen) == 0 || !bytes.Equal(content, seen[len(seen)-1].content)) {
			seen = append(seen, version{content, time.Now()})
		}
		for len(seen) > 1 && time.Since(seen[1].at) >= copyIsBehind {
			seen = seen[1:]
			if err := keyfile.WriteFile(client.KeyFile(r.copy), client.KeyFile(r.copy), seen[0].content); err != nil {
				r.t.Error(err)
			}
		}
		<-time.After(pollEach)
	}
}

func (r *replicas) awaitSequence(sequence int64) {
	r.t.Helper()
	testenv.Eventually(r.t, patience, "rotations by schedule", func() error {
		if have := r.record().Sequence; have < sequence {
			return fmt.Errorf("sequence %d of %d", have, sequence)
		}
		return nil
	})
}

// awaitLine waits until a process's present run says a line that begins so.
func (r *replicas) awaitLine(p *daemon, begins, what string) {
	r.t.Helper()
	testenv.Eventually(r.t, patience, p.name+" "+what, func() error {
		out, err := os.ReadFile(p.out())
		if err == nil && !bytes.Contains(out[p.outFrom:], []byte("\n"+begins)) {
			err = fmt.Errorf("no line %q", begins)
		}
		return err
	})
}

func lastVerified(out []byte) string {
	at := bytes.LastIndex(out, []byte("verified "))
	line, _, _ := bytes.Cut(out[max(0, at):], []byte("\n"))
	return string(line)
}
