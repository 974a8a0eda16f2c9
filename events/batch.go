package events

import (
	"crypto/rand"
	"crypto/sha512"
	"time"

	"github.com/oasisprotocol/curve25519-voi/curve"
	"github.com/oasisprotocol/curve25519-voi/curve/scalar"
)

const (
	// together is the largest number of signatures that one equation checks. A larger number gains
	// little for each signature, and a bad signature wastes the work on all of them.
	together = 64
	// worthwhile is the smallest such number. Below it the standard library is as fast.
	worthwhile = 2

	randomizer = 16 // bytes
)

// Published is a message as it was published, with its subject, and the time and place at which
// JetStream stored it.
type Published struct {
	Subject string
	Payload []byte
	Stored  time.Time // zero: now
	Place   uint64    // in the stream; 0: not known
}

func (p *Published) moment() moment { return moment{p.Stored, p.Place} }

// Verdict is the result of [Trust.Invalidation] for a message, with [Trust.At] set to the time at
// which it was stored.
type Verdict struct {
	Event Invalidation // zero if there is an error
	Err   error        // a [*Refusal]
}

// Invalidations reads messages of the invalidation stream. The results are those of
// [Trust.Invalidation], in the order of the messages. It checks up to 64 signatures together, which
// takes a quarter of the time. If one of them is bad, it checks each one alone: one or more bad
// signatures among 64 make all of them a quarter more expensive than checking them one by one.
func (t Trust) Invalidations(batch []Published) []Verdict {
	verdicts := make([]Verdict, len(batch))
	n := min(len(batch), together)
	part := part{Trust: t, messages: make([]reading, n), signedBy: make([][]int, len(t.keys))}
	if n >= worthwhile {
		part.sum = newSum(n)
	}
	for from := 0; from < len(batch); from += together {
		to := min(from+together, len(batch))
		part.judge(batch[from:to], verdicts[from:to])
	}
	return verdicts
}

// part is a number of messages that are checked together, and the memory for that, which is used
// again for the next part.
type part struct {
	Trust
	messages []reading
	signedBy [][]int // places of messages, by the key that they name
	sum      *sum
}

func (p *part) judge(batch []Published, verdicts []Verdict) {
	for k := range p.signedBy {
		p.signedBy[k] = p.signedBy[k][:0]
	}
	for i := range batch {
		m := &p.messages[i]
		if verdicts[i].Err = m.parse(batch[i].Payload); verdicts[i].Err != nil {
			continue
		}
		at := batch[i].moment()
		if k := p.hinted(&m.message); k >= 0 && p.keys[k].end.before(at) {
			p.signedBy[k] = append(p.signedBy[k], i)
		} else {
			_, verdicts[i].Err = p.signer(&m.message, at)
		}
	}
	for k, places := range p.signedBy {
		if p.keys[k].madeAll(p.sum, p.messages, places) {
			continue
		}
		for _, i := range places {
			_, verdicts[i].Err = p.signer(&p.messages[i].message, batch[i].moment())
		}
	}
	for i := range batch {
		if verdicts[i].Err == nil {
			verdicts[i].Event, verdicts[i].Err = p.readInvalidation(batch[i].Subject, &p.messages[i].message)
		}
		if verdicts[i].Err != nil {
			verdicts[i].Event = Invalidation{}
		}
	}
}

// madeAll reports whether the key made the signatures of all the messages at these places. False
// means that one of them is bad, or that they are too few to be worth it; then [PublicKey.Verify]
// must tell.
//
// The signatures (Rᵢ, Sᵢ) are good if 8·(Σ zᵢ·Sᵢ·B - Σ zᵢ·Rᵢ - (Σ zᵢ·kᵢ)·A) is the neutral point,
// with a random zᵢ of 128 bits for each. An error in one can't cancel an error in another, except
// by guessing the random numbers. Since one signer made all of them, A is multiplied only once.
//
// Every signature that [PublicKey.Verify] accepts is accepted here. The reverse has one exception,
// because of the factor 8: the standard library refuses an R with a component of small order. Only
// the holder of the private key can make such a signature, on purpose: S proves the key and depends
// on a hash of R, so R can't be changed afterwards. So the registry could sign a message that is
// believed in a batch and refused alone, which gives it nothing that it couldn't have by signing
// two messages. Signatures of services and developers are never checked here, but by the standard
// library's one exact rule, because they have reasons to make two readers disagree.
func (k *trustedKey) madeAll(sum *sum, messages []reading, places []int) bool {
	if len(places) < worthwhile {
		return false
	}
	sum.begin(len(places))
	hash := sha512.New()
	var digest [sha512.Size]byte
	for n, i := range places {
		m := &messages[i]
		r, s := m.signature.b[:32], m.signature.b[32:]
		hash.Reset()
		_, _ = hash.Write(r)
		_, _ = hash.Write(k.key.b[:])
		_, _ = hash.Write(m.canonical)
		if !sum.add(n, r, s, hash.Sum(digest[:0])) {
			return false
		}
	}
	return sum.isNeutral(k.points)
}

// sum is the left side of the equation. It is used for one equation after another, each started by
// [sum.begin].
type sum struct {
	ofB, ofA scalar.Scalar // Σ zᵢ·Sᵢ and Σ zᵢ·kᵢ
	ofR      []*scalar.Scalar
	points   []*curve.EdwardsPoint // the Rᵢ
	random   []byte
	n        int // the number of signatures in this equation
}

// newSum returns a sum for up to this number of signatures.
func newSum(most int) *sum {
	scalars, points := make([]scalar.Scalar, most), make([]curve.EdwardsPoint, most)
	s := &sum{ofR: make([]*scalar.Scalar, most), points: make([]*curve.EdwardsPoint, most), random: make([]byte, most*randomizer)}
	for i := range scalars {
		s.ofR[i], s.points[i] = &scalars[i], &points[i]
	}
	return s
}

// begin makes room for n signatures, with new random numbers.
func (s *sum) begin(n int) {
	s.n = n
	s.ofB.Zero()
	s.ofA.Zero()
	_, _ = rand.Read(s.random[:n*randomizer]) // never fails: it ends the process instead
}

// add adds the nth signature, unless R or S isn't in its one form: the standard library refuses
// those, whatever their origin.
func (s *sum) add(n int, r, answer, digest []byte) bool {
	var bytes [scalar.ScalarSize]byte
	copy(bytes[:], s.random[n*randomizer:][:randomizer])
	z := s.ofR[n]
	if _, err := z.SetCanonicalBytes(bytes[:]); err != nil {
		return false
	}
	if !decode(s.points[n], r) {
		return false
	}
	var term scalar.Scalar
	if _, err := term.SetCanonicalBytes(answer); err != nil {
		return false
	}
	s.ofB.Add(&s.ofB, term.Mul(z, &term))
	if _, err := term.SetBytesModOrderWide(digest); err != nil {
		return false
	}
	s.ofA.Add(&s.ofA, term.Mul(z, &term))
	return true
}

// isNeutral takes B and A.
func (s *sum) isNeutral(fixed []*curve.ExpandedEdwardsPoint) bool {
	s.ofB.Neg(&s.ofB) // the opposite of all signs: one negation instead of many
	var total curve.EdwardsPoint
	total.ExpandedMultiscalarMulVartime([]*scalar.Scalar{&s.ofB, &s.ofA}, fixed, s.ofR[:s.n], s.points[:s.n])
	return total.IsSmallOrder()
}

// decode sets p to the point that these 32 bytes encode. It reports whether they are the one
// encoding of a point: y is below 2²⁵⁵-19, and there is no sign if x is 0.
func decode(p *curve.EdwardsPoint, b []byte) bool {
	text := curve.CompressedEdwardsY(b)
	if !text.IsCanonicalVartime() {
		return false
	}
	_, err := p.SetCompressedY(&text)
	return err == nil
}
