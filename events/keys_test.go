package events_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"filippo.io/edwards25519"
	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
)

func TestParsePublicKey(t *testing.T) {
	t.Parallel()
	good := testKey(1).Public().String()
	body := strings.TrimPrefix(good, "ed25519:")
	for _, s := range []string{
		"", "ed25519:", body, "ED25519:" + body, "ed25519 " + body, "x25519:" + body, good[:50], good + "=", good + "A",
		" " + good, good + "\n", "ed25519:" + body[:21] + "\n" + body[21:42], "ed25519:" + body[:41] + "\r\n",
		"ed25519:" + body[:42] + "=", "ed25519:" + body[:42] + "+", "ed25519:" + body[:42] + "/",
		"ed25519:" + strings.Repeat("A", 42) + "B", // non-zero trailing bits
	} {
		if k, err := events.ParsePublicKey(s); !errors.Is(err, events.ErrPublicKey) || !k.IsZero() {
			t.Errorf("ParsePublicKey(%q) = %v, %v", s, k, err)
		}
	}
	for _, n := range []int{0, 31, 33} {
		if _, err := events.PublicKeyFromBytes(make([]byte, n)); !errors.Is(err, events.ErrPublicKey) {
			t.Errorf("PublicKeyFromBytes of %d bytes: %v", n, err)
		}
	}
}

// TestPublicKeyForms: the text form and the 32 bytes are two names for one key, and the only two.
func TestPublicKeyForms(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), ed25519.PublicKeySize, ed25519.PublicKeySize).Draw(t, "bytes")
		k, err := events.PublicKeyFromBytes(b)
		if err != nil || !bytes.Equal(k.Bytes(), b) {
			t.Fatalf("PublicKeyFromBytes(%x) = %v, %v", b, k, err)
		}
		if want := "ed25519:" + base64.RawURLEncoding.EncodeToString(b); k.String() != want {
			t.Fatalf("text form %s, want %s", k, want)
		}
		if again, err := events.ParsePublicKey(k.String()); err != nil || again != k {
			t.Fatalf("ParsePublicKey(%s) = %v, %v", k, again, err)
		}
	})
}

// TestWeakKeys: the eight points of small order, and encodings that name no point or name one a
// second time.
func TestWeakKeys(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"identity":                 "0100000000000000000000000000000000000000000000000000000000000000",
		"order-2":                  "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"order-4":                  "0000000000000000000000000000000000000000000000000000000000000000",
		"order-4-negative":         "0000000000000000000000000000000000000000000000000000000000000080",
		"order-8-a":                "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"order-8-b":                "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"order-8-c":                "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"order-8-d":                "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"identity-of-minus-zero-x": "0100000000000000000000000000000000000000000000000000000000000080",
		"identity-plus-p":          "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"y-is-p":                   "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"non-canonical-large":      "f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", // y = p + 3
		"no-point":                 "0200000000000000000000000000000000000000000000000000000000000000",
	} {
		b, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		k, err := events.PublicKeyFromBytes(b)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.CheckStrength(); !errors.Is(err, events.ErrWeakKey) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := events.NewTrust(origin, testKey(0).Public(), k); !errors.Is(err, events.ErrWeakKey) {
			t.Errorf("%s is trusted: %v", name, err)
		}
	}
}

// TestKeyStrength: every form that is not the only one, and what is around it, against the curve's
// equation in plain arithmetic: all y from 20 below the field's end to the last that 255 bits hold,
// the first ones, and points of small order, each with both signs; bytes at random, most of which
// are points of mixed order; honest keys, and what they are with each point of small order added.
func TestKeyStrength(t *testing.T) {
	t.Parallel()
	list := smallOrder(t)
	for low := range 256 {
		if low >= 20 && low < 0xd0 {
			continue
		}
		for _, high := range []byte{0, 0x80, 0x7f, 0xff} {
			b := bytes.Repeat([]byte{0xff * (high & 1)}, ed25519.PublicKeySize)
			b[0], b[31] = byte(low), high
			list = append(list, b)
		}
	}
	random := rand.NewChaCha8([32]byte{1})
	for range 100 {
		b := make([]byte, ed25519.PublicKeySize)
		_, _ = random.Read(b) // it never fails
		list = append(list, b)
	}
	const honest = 20
	for n := range byte(honest) {
		list = append(list, testKey(n).Public().Bytes())
		point := must(new(edwards25519.Point).SetBytes(testKey(n).Public().Bytes()))
		for eighth := range 8 {
			list = append(list, new(edwards25519.Point).Add(point, eighths(t, eighth)).Bytes())
		}
	}
	strong := 0
	for _, b := range list {
		key := must(events.PublicKeyFromBytes(b))
		err := key.CheckStrength()
		if errors.Is(err, events.ErrWeakKey) != weak(b) {
			t.Errorf("%x: %v, and by the curve's equation it is weak: %v", b, err, weak(b))
		}
		if err == nil {
			strong++
		}
	}
	if strong < honest || strong > len(list)/2 {
		t.Errorf("%d strong keys of %d: this shows nothing", strong, len(list))
	}
}

func TestParseSignature(t *testing.T) {
	t.Parallel()
	good := testKey(1).Sign(nil).String()
	if s, err := events.ParseSignature(good); err != nil || s != testKey(1).Sign(nil) {
		t.Errorf("ParseSignature(%q) = %v, %v", good, s, err)
	}
	for _, s := range []string{
		"", good[:85], good + "=", good + "==", good + "A", good[:85] + "\n", good[:84] + "\r\n", good[:85] + "+",
		" " + good[1:], strings.Repeat("A", 85) + "B", hex.EncodeToString(make([]byte, 43)) + "zz",
	} {
		if s, err := events.ParseSignature(s); !errors.Is(err, events.ErrSignature) || !s.IsZero() {
			t.Errorf("ParseSignature(%q) = %v, %v", s, s, err)
		}
	}
}

// TestZeroSignatureIsThere: 64 zero bytes are a signature, a bad one. A proof of them must be
// checked, and fail.
func TestZeroSignatureIsThere(t *testing.T) {
	t.Parallel()
	zeros := strings.Repeat("A", 86)
	d := drafts()[events.Rotation]
	message := withMember(t, must(d.Sign(testKey(1))), "new_key_signature", zeros)
	r, err := events.ParseRequest(d.Subject(), message)
	if err != nil {
		t.Fatal(err)
	}
	if r.Proof.IsZero() || r.Proof.String() != zeros || r.NewKey.Verify(r.Signed, r.Proof) {
		t.Errorf("proof %v: absent %v", r.Proof, r.Proof.IsZero())
	}
	if !(events.Signature{}).IsZero() {
		t.Error("no signature counts as one")
	}
}

// TestSign: the bytes are the standard library's, whatever the key and the message.
func TestSign(t *testing.T) {
	t.Parallel()
	same := func(t rapid.TB, seed, message []byte) {
		key := ed25519.NewKeyFromSeed(seed)
		want, err := events.SignatureFromBytes(ed25519.Sign(key, message))
		if got := events.NewSigningKey(key).Sign(message); err != nil || got != want {
			t.Fatalf("seed %x, message %x: got %v, want %v, %v", seed, message, got, want, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		same(t, rapid.SliceOfN(rapid.Byte(), ed25519.SeedSize, ed25519.SeedSize).Draw(t, "seed"),
			rapid.SliceOfN(rapid.Byte(), 0, 1024).Draw(t, "message"))
	})
	dice := rand.NewChaCha8([32]byte{})
	seed, message := make([]byte, ed25519.SeedSize), make([]byte, 400)
	for range 2000 { // points all over the curve, where a lost carry would show
		_, _ = dice.Read(seed)
		_, _ = dice.Read(message)
		same(t, seed, message)
	}
}

// TestSigningKeyIsNotPrinted: not by fmt, whatever the verb and wherever the key sits, and not by
// slog or JSON.
func TestSigningKeyIsNotPrinted(t *testing.T) {
	t.Parallel()
	key := events.NewSigningKey(ed25519.NewKeyFromSeed([]byte("0123456789abcdef0123456789abcdef")))
	seed := key.Private().Seed()
	secrets := []string{ // in each form that something prints bytes in
		string(seed), hex.EncodeToString(seed), strings.ToUpper(hex.EncodeToString(seed)), fmt.Sprintf("% x", seed),
		base64.StdEncoding.EncodeToString(seed)[:40], base64.RawURLEncoding.EncodeToString(seed)[:40],
		strings.Trim(fmt.Sprintf("%d", seed), "[]"), strings.Trim(fmt.Sprintf("%#v", seed), "[]byte{}"),
		strings.Trim(fmt.Sprintf("%o", seed), "[]"), strings.Trim(fmt.Sprintf("%b", seed), "[]"), strings.Trim(fmt.Sprintf("%c", seed), "[]"),
	}
	type hidden struct{ key events.SigningKey }
	printed := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%T"} {
		for name, v := range map[string]any{
			"value": key, "pointer": &key, "field": events.Draft{NewKey: key}, "hidden field": hidden{key},
			"pointer to field": &hidden{key}, "list": []events.SigningKey{key}, "map": map[string]hidden{"": {key}},
		} {
			printed[verb+" of "+name] = fmt.Sprintf(verb, v)
		}
	}
	var text, lines bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("rotated", "key", key, "hidden", hidden{key}, "draft", events.Draft{NewKey: key})
	slog.New(slog.NewJSONHandler(&lines, nil)).Info("rotated", "key", key, "hidden", hidden{key})
	printed["slog text"], printed["slog JSON"] = text.String(), lines.String()
	if b, err := json.Marshal(key); err == nil {
		t.Errorf("has a JSON form: %s", b)
	}

	for what, s := range printed {
		for _, secret := range secrets {
			if strings.Contains(s, secret) {
				t.Errorf("%s shows the private key: %q", what, s)
			}
		}
	}
	if got, want := fmt.Sprint(key), "private key of "+key.Public().String(); got != want {
		t.Errorf("prints as %q, want %q", got, want)
	}
	if (events.SigningKey{}).Private() != nil || !(events.SigningKey{}).IsZero() || key.IsZero() {
		t.Error("IsZero does not tell a key from none")
	}
}

// TestWeakKeysTogether: keys of mixed order are found among any number of others, one by one and by
// sums.
func TestWeakKeysTogether(t *testing.T) {
	t.Parallel()
	var honest []events.PublicKey
	for n := range byte(70) {
		honest = append(honest, testKey(n).Public())
	}
	bad := func(n byte, eighth int) events.PublicKey {
		point := must(new(edwards25519.Point).SetBytes(testKey(n).Public().Bytes()))
		return must(events.PublicKeyFromBytes(point.Add(point, eighths(t, eighth)).Bytes()))
	}
	for size := range len(honest) + 1 {
		keys := slices.Clone(honest[:size])
		if got := events.WeakKeys(keys); len(got) > 0 {
			t.Fatalf("of %d honest keys %v are weak", size, got)
		}
		if size < 3 || size > 40 && size < 66 {
			continue
		}
		one, two := bad(100, 1+size%7), bad(101, 7-size%7) // which cancel each other
		keys[size/2], keys[size-1] = one, two
		got := events.WeakKeys(keys)
		maps.Copy(got, events.WeakKeys(keys)) // both escape the random sums once in 65,536 times, and twice never
		if len(got) != 2 || !got[one] || !got[two] {
			t.Errorf("of %d keys %v are weak, want %s and %s", size, got, one, two)
		}
	}
	none := must(events.PublicKeyFromBytes(bytes.Repeat([]byte{0xff}, 32)))
	if got := events.WeakKeys(append(slices.Clone(honest), events.PublicKey{}, none)); len(got) != 2 || !got[events.PublicKey{}] || !got[none] {
		t.Errorf("of a point of small order and what is none, weak are %v", got)
	}
}
