package events_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"filippo.io/edwards25519"
	"github.com/google/go-cmp/cmp"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/vectors"
)

// texts is what one key signed.
type texts struct {
	messages   [][]byte
	signatures []events.Signature
}

func (b *texts) add(message []byte, s events.Signature) {
	b.messages, b.signatures = append(b.messages, message), append(b.signatures, s)
}

func signedTexts(key events.SigningKey, n int) *texts {
	var b texts
	for i := range n {
		message := fmt.Appendf(nil, "message %d", i)
		b.add(message, key.Sign(message))
	}
	return &b
}

// together asks the equation, and the standard library of each.
func (b *texts) together(key events.PublicKey) (batch, standard bool) {
	standard = true
	for i, s := range b.signatures {
		standard = standard && key.Verify(b.messages[i], s)
	}
	return events.MadeAll(key, b.messages, b.signatures), standard
}

func TestTogetherGood(t *testing.T) {
	t.Parallel()
	key := testKey(0)
	for _, n := range []int{events.Worthwhile, 4, 7, events.Together - 1, events.Together} {
		if batch, standard := signedTexts(key, n).together(key.Public()); !batch || !standard {
			t.Errorf("%d good signatures: together %v, one by one %v", n, batch, standard)
		}
	}
	if batch, _ := signedTexts(key, 0).together(key.Public()); batch {
		t.Error("no signature proves nothing")
	}
}

// TestTogetherBad: what is no signature by the standard library's rule spoils the batch, wherever
// it stands, and whatever somebody made of it who has not the private key.
func TestTogetherBad(t *testing.T) {
	t.Parallel()
	key, stranger := testKey(0), testKey(9)
	for name, forge := range map[string]func(message []byte, good [64]byte, random *rand.Rand) [64]byte{
		"another key's": func(m []byte, _ [64]byte, _ *rand.Rand) [64]byte { return raw(stranger.Sign(m)) },
		"another message's": func(m []byte, _ [64]byte, _ *rand.Rand) [64]byte {
			return raw(key.Sign(append(bytes.Clone(m), '.')))
		},
		"one bit wrong": func(_ []byte, s [64]byte, random *rand.Rand) [64]byte {
			s[random.IntN(64)] ^= 1 << random.IntN(8)
			return s
		},
		"S beyond its range": func(_ []byte, s [64]byte, _ *rand.Rand) [64]byte { return plusOrder(s) },
		"S of 255 bits":      func(_ []byte, s [64]byte, _ *rand.Rand) [64]byte { s[63] |= 0x40; return s },
		"R of small order": func(_ []byte, s [64]byte, random *rand.Rand) [64]byte {
			copy(s[:32], smallOrder(t)[random.IntN(len(smallOrder(t)))])
			return s
		},
		"R of small order, S 0": func(_ []byte, _ [64]byte, random *rand.Rand) (s [64]byte) {
			copy(s[:32], smallOrder(t)[random.IntN(len(smallOrder(t)))])
			return s
		},
		"R with a small component": func(_ []byte, s [64]byte, random *rand.Rand) [64]byte {
			return withTorsion(t, s, random.IntN(8))
		},
		"R is no point": func(_ []byte, s [64]byte, _ *rand.Rand) [64]byte {
			copy(s[:32], []byte{2, 31: 0})
			return s
		},
		"R as good as none": func(_ []byte, s [64]byte, _ *rand.Rand) [64]byte { clear(s[:32]); return s },
		"nothing":           func([]byte, [64]byte, *rand.Rand) [64]byte { return [64]byte{} },
		"negative R":        func(_ []byte, s [64]byte, _ *rand.Rand) [64]byte { s[31] ^= 0x80; return s },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(1, 2)) // the same each time: what fails once fails again
			for range 12 {
				b := signedTexts(key, events.Worthwhile+random.IntN(6))
				at := random.IntN(len(b.messages))
				forged := forge(b.messages[at], raw(b.signatures[at]), random)
				spoils := forged != raw(b.signatures[at])
				b.signatures[at] = must(events.SignatureFromBytes(forged[:]))
				if batch, standard := b.together(key.Public()); batch != standard || standard == spoils {
					t.Errorf("%x in place %d of %d: together %v, one by one %v", forged, at, len(b.messages), batch, standard)
				}
			}
		})
	}
}

// TestTogetherCancels: two signatures that are wrong by the same amount, one too much and one too
// little, are two wrong ones, though their sum is right.
func TestTogetherCancels(t *testing.T) {
	t.Parallel()
	key := testKey(0)
	for n := events.Worthwhile; n < 8; n++ {
		b := signedTexts(key, n)
		first, last := raw(b.signatures[0]), raw(b.signatures[n-1])
		delta := must(new(edwards25519.Scalar).SetUniformBytes(bytes.Repeat([]byte{byte(n)}, 64)))
		copy(first[32:], new(edwards25519.Scalar).Add(scalar(t, first[32:]), delta).Bytes())
		copy(last[32:], new(edwards25519.Scalar).Subtract(scalar(t, last[32:]), delta).Bytes())
		b.signatures[0], b.signatures[n-1] = must(events.SignatureFromBytes(first[:])), must(events.SignatureFromBytes(last[:]))
		if batch, standard := b.together(key.Public()); batch || standard {
			t.Errorf("together %v, one by one %v", batch, standard)
		}
	}
	b := signedTexts(key, 4)
	b.signatures[1], b.signatures[2] = b.signatures[2], b.signatures[1]
	if batch, standard := b.together(key.Public()); batch || standard {
		t.Errorf("exchanged: together %v, one by one %v", batch, standard)
	}
}

// TestTogetherDiffers is all that a batch takes and the standard library doesn't: what the holder
// of the private key made so on purpose. What the standard library takes, a batch always takes,
// also of a key with a component of small order.
func TestTogetherDiffers(t *testing.T) {
	t.Parallel()
	key := testKey(0)
	for eighth := range 8 {
		b := signedTexts(key, 4)
		b.signatures[2] = signWithTorsion(t, key, key.Public(), b.messages[2], eighth)
		if batch, standard := b.together(key.Public()); !batch || standard != (eighth == 0) {
			t.Errorf("the signer adds %d eighths: together %v, one by one %v", eighth, batch, standard)
		}
	}
	zero := edwards25519.NewScalar()
	for _, r := range smallOrder(t) {
		b := signedTexts(key, 4)
		b.signatures[0] = signAs(t, key, key.Public(), b.messages[0], zero, r)
		oneForm := bytes.Equal(must(new(edwards25519.Point).SetBytes(r)).Bytes(), r)
		if batch, standard := b.together(key.Public()); batch != oneForm || standard && !oneForm {
			t.Errorf("the signer takes R %x: together %v, one by one %v", r, batch, standard)
		}
	}
	for eighth := range 8 {
		public, sign := mixedKey(t, key, eighth)
		var b texts
		for i := 0; len(b.messages) < 4; i++ {
			message := fmt.Appendf(nil, "message %d", i)
			if s := sign(message); public.Verify(message, s) {
				b.add(message, s)
			}
		}
		if batch, standard := b.together(public); !batch || !standard {
			t.Errorf("a key with %d eighths: together %v, one by one %v", eighth, batch, standard)
		}
	}
}

// TestWeakKeyIsNoTrust: of a key of small order everybody can make signatures, so no batch is asked
// about one.
func TestWeakKeyIsNoTrust(t *testing.T) {
	t.Parallel()
	for _, b := range smallOrder(t) {
		if _, err := events.NewTrust(origin, must(events.PublicKeyFromBytes(b))); err == nil {
			t.Errorf("trust in %x", b)
		}
	}
}

// TestInvalidations: many messages are judged as each is by itself, whatever stands beside it.
func TestInvalidations(t *testing.T) {
	t.Parallel()
	both := must(events.NewTrust(origin, testKey(0).Public(), testKey(1).Public()))
	random := rand.New(rand.NewPCG(3, 4))
	var pool []events.Published
	for n := range 3 * events.Together {
		i := someInvalidation(eventKinds[n%len(eventKinds)])
		i.Sequence = int64(n)
		message := i.Sign(testKey(byte(n % 2)))
		switch n % 64 {
		case 7:
			message = i.Sign(testKey(9))
		case 17:
			message = withMember(t, message, "key_id", testKey(0).Public().KeyID())
		case 18:
			message = withMember(t, message, "key_id", nil)
		case 19:
			message = withMember(t, message, "signature", events.GenerateSigningKey().Sign(nil))
		case 20:
			message = message[:len(message)/2]
		case 21:
			i.Target.Service = must(events.ParseServiceID("another"))
		case 22:
			i.Origin = "elsewhere.example"
			message = i.Sign(testKey(0))
		}
		pool = append(pool, events.Published{Subject: i.Subject(), Payload: message})
	}
	for name, trust := range map[string]events.Trust{"one": someTrust(), "both": both, "nobody": {}} {
		for _, n := range []int{0, 1, 2, 3, 8, events.Together, events.Together + 1, len(pool)} {
			random.Shuffle(len(pool), func(i, j int) { pool[i], pool[j] = pool[j], pool[i] })
			t.Log(name, n)
			sameVerdicts(t, trust, pool[:n])
		}
	}
}

// TestInvalidationsTogether shows by the one thing that only a batch takes that messages are
// checked in one.
func TestInvalidationsTogether(t *testing.T) {
	t.Parallel()
	i, key := someInvalidation(events.KeyRotation), testKey(0)
	good := events.Published{Subject: i.Subject(), Payload: i.Sign(key)}
	data := must(events.Canonical(membersOf(t, good.Payload)["data"]))
	odd := good
	odd.Payload = withMember(t, good.Payload, "signature", signWithTorsion(t, key, key.Public(), data, 1))
	bad := good
	bad.Payload = withMember(t, good.Payload, "signature", key.Sign(nil))
	for name, tc := range map[string]struct {
		batch []events.Published
		taken bool
	}{
		"alone": {[]events.Published{odd}, false}, "among good ones": {[]events.Published{odd, good, good, good}, true},
		"beside a bad one": {[]events.Published{odd, good, good, bad}, false},
		"before others":    {append([]events.Published{odd}, slices.Repeat([]events.Published{good}, events.Together)...), true},
		"behind others":    {append(slices.Repeat([]events.Published{good}, events.Together), good, odd), true},
	} {
		place := slices.IndexFunc(tc.batch, func(p events.Published) bool { return bytes.Equal(p.Payload, odd.Payload) })
		if err := someTrust().Invalidations(tc.batch)[place].Err; (err == nil) != tc.taken {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVectorEventsTogether(t *testing.T) {
	t.Parallel()
	for _, f := range vectors.Load(t).Events {
		var batch []events.Published
		for _, c := range f.Events {
			batch = append(batch, events.Published{Subject: c.Subject, Payload: c.Message()})
		}
		sameVerdicts(t, trustOf(t, f), batch)
		slices.Reverse(batch)
		sameVerdicts(t, trustOf(t, f), batch)
		for _, one := range batch { // alone among good ones, and on its own
			i := someInvalidation(events.KeyRotation)
			i.Origin = f.Origin
			good := events.Published{Subject: i.Subject(), Payload: i.Sign(testKey(0))}
			trust := must(events.NewTrust(f.Origin, append(trustOf(t, f).PublicKeys(), testKey(0).Public())...))
			sameVerdicts(t, trust, []events.Published{good, good, one, good, good})
			sameVerdicts(t, trust, []events.Published{one, one, one})
		}
	}
}

// TestVectorEventsAfterAnother: nothing of a message is left in its memory for the next one that is
// read there.
func TestVectorEventsAfterAnother(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(5, 6))
	i := someInvalidation(events.KeyRotation)
	good := i.Sign(testKey(0))
	for _, f := range vectors.Load(t).Events {
		var batch []events.Published
		for range 10 * events.Together {
			c := f.Events[random.IntN(len(f.Events))]
			message := c.Message()
			switch random.IntN(9) {
			case 0:
				message = withMember(t, good, "data", nil)
			case 1:
				message = withMember(t, good, "data", map[string]int64{"sequence": 1 << 60})
			case 2:
				message = []byte("[]")
			}
			batch = append(batch, events.Published{Subject: c.Subject, Payload: message})
		}
		sameVerdicts(t, trustOf(t, f), batch)
	}
}

func sameVerdicts(t *testing.T, trust events.Trust, batch []events.Published) {
	t.Helper()
	got := trust.Invalidations(batch)
	if len(got) != len(batch) {
		t.Fatalf("%d verdicts on %d messages", len(got), len(batch))
	}
	for i, one := range batch {
		want, err := trust.Invalidation(one.Subject, one.Payload)
		if err != nil {
			want = events.Invalidation{}
		}
		if diff := cmp.Diff(fmt.Sprint(err), fmt.Sprint(got[i].Err)) + cmp.Diff(want, got[i].Event, exact); diff != "" {
			t.Errorf("message %d of %d:\n%s\n%s", i, len(batch), one.Payload, diff)
		}
	}
}

func raw(s events.Signature) [64]byte {
	return [64]byte(must(base64.RawURLEncoding.DecodeString(s.String())))
}

func scalar(t *testing.T, b []byte) *edwards25519.Scalar {
	t.Helper()
	s, err := new(edwards25519.Scalar).SetCanonicalBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// plusOrder adds the group's order to S: the same number in the exponent, in another form.
func plusOrder(s [64]byte) [64]byte {
	order, _ := hex.DecodeString("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010")
	carry := 0
	for i, b := range order {
		carry += int(s[32+i]) + int(b)
		s[32+i] = byte(carry)
		carry >>= 8
	}
	return s
}

// eighths returns n times a point of order 8.
func eighths(t *testing.T, n int) *edwards25519.Point {
	t.Helper()
	b, _ := hex.DecodeString("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
	p, err := new(edwards25519.Point).SetBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	sum := edwards25519.NewIdentityPoint()
	for range n {
		sum.Add(sum, p)
	}
	return sum
}

// smallOrder returns every 32 bytes that decode to a point of small order, in all their forms.
func smallOrder(t *testing.T) [][]byte {
	t.Helper()
	var all [][]byte
	for n := range 8 {
		all = append(all, eighths(t, n).Bytes())
	}
	for _, text := range []string{ // y beyond the field, or a sign of the x that is 0
		"0100000000000000000000000000000000000000000000000000000000000080", "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	} {
		b, _ := hex.DecodeString(text)
		all = append(all, b)
	}
	return all
}

// withTorsion adds to R a point of small order, as anybody can.
func withTorsion(t *testing.T, s [64]byte, eighth int) [64]byte {
	t.Helper()
	r, err := new(edwards25519.Point).SetBytes(s[:32])
	if err != nil {
		t.Fatal(err)
	}
	copy(s[:32], r.Add(r, eighths(t, eighth)).Bytes())
	return s
}

// mixedKey returns the key with a component of small order, and a signer for it.
func mixedKey(t *testing.T, key events.SigningKey, eighth int) (events.PublicKey, func([]byte) events.Signature) {
	t.Helper()
	a, err := new(edwards25519.Point).SetBytes(key.Public().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	public := must(events.PublicKeyFromBytes(a.Add(a, eighths(t, eighth)).Bytes()))
	return public, func(message []byte) events.Signature { return signWithTorsion(t, key, public, message, 0) }
}

// signWithTorsion is how the holder of the key gets such an R into a signature: before it is
// hashed.
func signWithTorsion(t *testing.T, key events.SigningKey, public events.PublicKey, message []byte, eighth int) events.Signature {
	t.Helper()
	secret := sha512.Sum512(append(key.Private().Seed(), message...))
	r := must(new(edwards25519.Scalar).SetUniformBytes(secret[:]))
	point := new(edwards25519.Point).ScalarBaseMult(r)
	return signAs(t, key, public, message, r, point.Add(point, eighths(t, eighth)).Bytes())
}

// signAs answers the hash of R as it is written, which belongs to r but for a component of small
// order.
func signAs(
	t *testing.T, key events.SigningKey, public events.PublicKey, message []byte, r *edwards25519.Scalar, written []byte,
) events.Signature {
	t.Helper()
	seed := sha512.Sum512(key.Private().Seed())
	secret, err := new(edwards25519.Scalar).SetBytesWithClamping(seed[:32])
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum512(slices.Concat(written, public.Bytes(), message))
	k := must(new(edwards25519.Scalar).SetUniformBytes(digest[:]))
	s := new(edwards25519.Scalar).MultiplyAdd(k, secret, r).Bytes()
	return must(events.SignatureFromBytes(slices.Concat(written, s)))
}
