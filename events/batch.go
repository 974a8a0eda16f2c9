package events

import (
	"crypto/rand"
	"crypto/sha512"
	"time"

	"github.com/oasisprotocol/curve25519-voi/curve"
	"github.com/oasisprotocol/curve25519-voi/curve/scalar"
)

const (
	// together is the largest number of signatures that one equation checks. Beyond it little is gained for each, and a bad
	// one makes the work on so many in vain.
	together = 64
	// worthwhile is the smallest number. Below it the standard library is as quick.
	worthwhile = 2

	randomizer = 16 // bytes
)

// Published is a message as it was published: its bytes, and on which subject; and when JetStream stored it, and where.
type Published struct {
	Subject string
	Payload []byte
	Stored  time.Time // zero: now
	Place   uint64    // 0: not known
}

func (p *Published) moment() moment { return moment{p.Stored, p.Place} }

// Verdict is what [Trust.Invalidation] says of a message, [Trust.At] the time at which it was stored.
type Verdict struct {
	Event Invalidation // zero where there is an error
	Err   error        // a [*Refusal]
}

// Invalidations reads messages of the invalidation stream, and says of each what [Trust.Invalidation] does, in their order.
// Signatures are checked up to 64 together, which takes a quarter of the time. Where one of them is bad, each is checked by
// itself: so a bad one in 64 makes all of them dearer by a quarter than one by one, and more bad ones no dearer than that.
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

// part is so many messages as are checked together, and the memory for that, which serves for one part after the other.
type part struct {
	Trust
	messages []reading
	signedBy [][]int // by the key that each names, the places of messages
	sum      *sum
}

func (p *part) judge(batch []Published, verdicts []Verdict) {
	for k := range p.signedBy {
		p.signedBy[k] = p.signedBy[k][:0]
	}
	for i := range batch {
		m := &p.messages[i]
		if verdicts[i].Err = m.take(batch[i].Payload); verdicts[i].Err != nil {
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

// madeAll reports whether the key made the signatures of all the messages at these places. Where it says no, one of them is
// bad, or they are fewer than are worth it: [PublicKey.Verify] is to tell.
//
// The signatures (Rᵢ, Sᵢ) are good if 8·(Σ zᵢ·Sᵢ·B - Σ zᵢ·Rᵢ - (Σ zᵢ·kᵢ)·A) is the neutral point, with a random zᵢ of 128
// bits for each: what is wrong with one can't cancel what is wrong with another, but by guessing them. Since all are of one
// signer, A is multiplied but once.
//
// What [PublicKey.Verify] takes, this takes. The other way round they differ in one thing, because of the factor 8: the
// standard library refuses an R with a component of small order. Whoever has the private key can make such a signature on
// purpose, and nobody else: S proves the key, and answers a hash of R, so R can't be changed afterwards. So the registry
// could sign a message that is believed in a batch and refused alone, which gives it nothing that it couldn't have by signing
// two messages. What services and developers sign is never checked here, but by the standard library's one exact rule: they
// have reasons to let two readers disagree.
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

// sum is the left side of the equation. It serves for one equation after the other, each with [sum.begin].
type sum struct {
	ofB, ofA scalar.Scalar // Σ zᵢ·Sᵢ and Σ zᵢ·kᵢ
	ofR      []*scalar.Scalar
	points   []*curve.EdwardsPoint // the Rᵢ
	random   []byte
	n        int // how many signatures there are in this equation
}

// newSum returns a sum for so many signatures at most.
func newSum(most int) *sum {
	scalars, points := make([]scalar.Scalar, most), make([]curve.EdwardsPoint, most)
	s := &sum{ofR: make([]*scalar.Scalar, most), points: make([]*curve.EdwardsPoint, most), random: make([]byte, most*randomizer)}
	for i := range scalars {
		s.ofR[i], s.points[i] = &scalars[i], &points[i]
	}
	return s
}

// begin makes room for n signatures, with other random numbers than any equation had before.
func (s *sum) begin(n int) {
	s.n = n
	s.ofB.Zero()
	s.ofA.Zero()
	_, _ = rand.Read(s.random[:n*randomizer]) // crypto/rand.Read never fails: it ends the process instead
}

// add adds the nth signature, unless R or S isn't in its one form: the standard library refuses those, whoever made them.
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
	s.ofB.Neg(&s.ofB) // of all signs the other: one negation instead of many
	var total curve.EdwardsPoint
	total.ExpandedMultiscalarMulVartime([]*scalar.Scalar{&s.ofB, &s.ofA}, fixed, s.ofR[:s.n], s.points[:s.n])
	return total.IsSmallOrder()
}

// decode sets p to the point that these 32 bytes encode, and reports whether there is one that is written so: with y below
// 2²⁵⁵-19, and no sign where x is 0.
func decode(p *curve.EdwardsPoint, b []byte) bool {
	text := curve.CompressedEdwardsY(b)
	if !text.IsCanonicalVartime() {
		return false
	}
	_, err := p.SetCompressedY(&text)
	return err == nil
}
