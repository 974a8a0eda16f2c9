package events_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/vectors"
)

func TestVectorCanonical(t *testing.T) {
	t.Parallel()
	for _, f := range vectors.Load(t).Canonical {
		for _, c := range f.Cases {
			t.Run(f.File+"/"+c.Name, func(t *testing.T) {
				t.Parallel()
				for _, input := range []string{c.Input, c.Canonical, " \t\r\n" + c.Input + "\n"} {
					got, err := events.Canonical([]byte(input))
					if err != nil || string(got) != c.Canonical {
						t.Errorf("Canonical(%q) = %q, %v; want %q", input, got, err, c.Canonical)
					}
				}
				if sum := sha256.Sum256([]byte(c.Canonical)); hex.EncodeToString(sum[:]) != c.SHA256 {
					t.Errorf("SHA-256 of the canonical form is %x, want %s", sum, c.SHA256)
				}
			})
		}
	}
}

func TestVectorKeys(t *testing.T) {
	t.Parallel()
	for _, f := range vectors.Load(t).Keys {
		for name, c := range f.Keys {
			t.Run(f.File+"/"+name, func(t *testing.T) {
				t.Parallel()
				private := events.NewSigningKey(c.Private())
				if got := private.Public().String(); got != c.PublicKey {
					t.Errorf("the seed's public key is %s, want %s", got, c.PublicKey)
				}
				public, err := events.ParsePublicKey(c.PublicKey)
				if err != nil || public != private.Public() {
					t.Errorf("ParsePublicKey(%s) = %v, %v", c.PublicKey, public, err)
				}
				if err := public.CheckStrength(); err != nil {
					t.Error(err)
				}
				message := []byte("message")
				if s := private.Sign(message); !public.Verify(message, s) || public.Verify([]byte("massage"), s) {
					t.Error("the public key does not tell what the private key signed from what it did not")
				}
			})
		}
	}
}

func TestVectorEvents(t *testing.T) {
	t.Parallel()
	for _, f := range vectors.Load(t).Events {
		trust := trustOf(t, f)
		for _, c := range f.Events {
			t.Run(f.File+"/"+c.Name, func(t *testing.T) {
				t.Parallel()
				got, err := trust.Invalidation(c.Subject, c.Message())
				if applied := err == nil; applied != (c.Expect == vectors.Applied) {
					t.Fatalf("expected %s: got %+v, %v", c.Expect, got, err)
				}
				if err == nil && (got.Subject() != c.Subject || got.Origin != f.Origin) {
					t.Errorf("the event is of %s at %s, not of its own subject and origin", got.Subject(), got.Origin)
				}
			})
		}
	}
}

func trustOf(t *testing.T, f vectors.EventFile) events.Trust {
	t.Helper()
	var keys []events.PublicKey
	for _, text := range f.TrustedRegistryKeys {
		key, err := events.ParsePublicKey(text)
		if err != nil {
			t.Fatalf("%s: %s: %v", f.File, text, err)
		}
		keys = append(keys, key)
	}
	trust, err := events.NewTrust(f.Origin, keys...)
	if err != nil {
		t.Fatalf("%s: %v", f.File, err)
	}
	return trust
}

// TestVectorRequestForms holds every request against the checks that need no state. Those that a
// registry refuses for its state must pass here.
func TestVectorRequestForms(t *testing.T) {
	t.Parallel()
	for _, f := range vectors.Load(t).Requests {
		for _, c := range f.Cases {
			t.Run(f.File+"/"+c.Name, func(t *testing.T) {
				t.Parallel()
				r, err := events.ParseRequest(c.Subject, c.Message())
				got := formOf(r, err, f.State)
				switch want := events.Reason(c.Expect); want {
				case events.MalformedMessage, events.UnsupportedVersion, events.InvalidField, events.TargetMismatch:
					if got != want {
						t.Errorf("got %q (%v), want %q", got, err, want)
					}
				case vectors.Committed, vectors.Duplicate,
					events.TimestampOutOfWindow, events.UnknownApp, events.UnknownService, events.AlreadyBound,
					events.OutOfOrder, events.TimestampOutOfOrder,
					events.InvalidSignature, events.SupersededKey, events.InvalidProof, events.WeakKey,
					events.KeyInUse, events.NonceReused, events.RateLimited:
					if got != "" {
						t.Errorf("got %q (%v), want a request in good form", got, err)
					}
				default:
					t.Errorf("%q is not an expectation of this contract", want)
				}
			})
		}
	}
}

// formOf returns why a request is refused before its state is looked at. The bound of its grace
// period is the registry's, so it is beyond what the parser knows.
func formOf(r *events.Request, err error, state vectors.State) events.Reason {
	switch {
	case err != nil:
		return reasonOf(err)
	case !r.NamesItsTarget(), !r.IsFor(state.Origin):
		return events.TargetMismatch
	case r.HasGracePeriod && r.GracePeriod > state.GracePeriod:
		return events.InvalidField
	default:
		return ""
	}
}

// TestWorkedExample: docs/protocol.md §9 is a vector, written out. A change to one that misses the
// other would send somebody who has only the page on a long search.
func TestWorkedExample(t *testing.T) {
	t.Parallel()
	dir, err := vectors.Dir()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "..", "..", "docs", "protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, f := range vectors.Load(t).Requests {
		for _, c := range f.Cases {
			if c.Name != "bound-with-proof" {
				continue
			}
			found = true
			r, err := events.ParseRequest(c.Subject, c.Message())
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range []string{
				c.Name, c.Subject, string(r.Signed), r.Signature.String(), r.Proof.String(),
				draftOf(r, events.SigningKey{}).MsgID(), events.AnswerSubject + r.Target.String(),
			} {
				if !bytes.Contains(page, []byte(part)) {
					t.Errorf("the page does not have %q", part)
				}
			}
		}
	}
	if !found {
		t.Error("the vector of the page's example is gone")
	}
}
