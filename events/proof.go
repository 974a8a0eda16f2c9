package events

import (
	"errors"
	"slices"
)

// Proofs says which requests a registry takes only with `new_key_signature`, a proof that the
// sender has the new key (§5).
type Proofs string

// The values of [Proofs]. The default is [ProofsOwn]: bindings and resets are this project's own
// payloads, and the spec's rotation has no proof.
const (
	ProofsNone Proofs = "none"
	ProofsOwn  Proofs = "own"
	ProofsAll  Proofs = "all"
)

// ErrProofs means that a text is not a value of [Proofs].
var ErrProofs = errors.New("a registry requires none, own or all: own is a proof in bindings and resets, all in rotations too")

// ParseProofs returns s as a [Proofs], or [ErrProofs].
func ParseProofs(s string) (Proofs, error) {
	if !slices.Contains([]Proofs{ProofsNone, ProofsOwn, ProofsAll}, Proofs(s)) {
		return "", ErrProofs
	}
	return Proofs(s), nil
}

// Need reports whether a request of this kind needs a proof.
func (p Proofs) Need(kind RequestKind) bool {
	return kind != Revocation && (p == ProofsAll || p == ProofsOwn && kind != Rotation)
}
