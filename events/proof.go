package events

import (
	"errors"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// Proofs is which requests a registry takes only with a proof that whoever asks has the new key: `new_key_signature` (§5).
type Proofs string

// The values of [Proofs]. As delivered it is [ProofsOwn]: bindings and resets are this project's own payloads, and the spec's
// rotation has no proof.
const (
	ProofsNone Proofs = "none"
	ProofsOwn  Proofs = "own"
	ProofsAll  Proofs = "all"
)

// ErrProofs means that a text is none of these.
var ErrProofs = errors.New("none, own or all is what a registry may require: own is a proof in bindings and resets, all in rotations too; " +
	"what was false before is none, and true is all")

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

// UnmarshalJSONFrom reads what a registry says of itself. Before, it was true or false.
func (p *Proofs) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	token, err := dec.ReadToken()
	if err != nil {
		return err
	}
	switch token.Kind() {
	case 't':
		*p = ProofsAll
	case 'f':
		*p = ProofsNone
	case '"':
		*p = Proofs(token.String())
	default:
		return ErrProofs
	}
	return nil
}
