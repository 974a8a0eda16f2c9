package events_test

import (
	"crypto/ed25519"
	"errors"
	"maps"
	"reflect"
	"slices"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/vectors"
)

const (
	origin   = "omiappreg.org"
	appText  = "org.omiappreg.alice.business_app.7f8a9d"
	now      = int64(1_705_412_600)
	someHash = "n7b2v9x4aaaaaaaaaaaaaa"
)

// exact compares values of this package, whose types keep their forms in unexported members.
var exact = cmp.Options{
	cmp.Exporter(func(typ reflect.Type) bool { return typ.PkgPath() == "omiappreg.org/keyrotation/events" }),
	cmp.Comparer(func(a, b events.SigningKey) bool { return a.Public() == b.Public() }),
}

// testKey returns the nth of a row of keys that differ.
func testKey(n byte) events.SigningKey {
	seed := [ed25519.SeedSize]byte{n}
	return events.NewSigningKey(ed25519.NewKeyFromSeed(seed[:]))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// someTarget is the service of the spec's example.
func someTarget() events.Target {
	return must(events.ParseTarget(appText + ".cms-article-77"))
}

func someNonce() events.Nonce { return must(events.ParseNonce(someHash)) }

// someTrust trusts testKey(0) at origin.
func someTrust() events.Trust { return must(events.NewTrust(origin, testKey(0).Public())) }

// reasonOf returns the reason code of a refusal, "" for no error, and the error's text for any
// other error.
func reasonOf(err error) events.Reason {
	if refusal := (*events.Refusal)(nil); errors.As(err, &refusal) {
		return refusal.Reason
	}
	if err != nil {
		return events.Reason(err.Error())
	}
	return ""
}

// vectorKey returns a key of the vectors by its name.
func vectorKey(t testing.TB, set vectors.Set, name string) events.SigningKey {
	t.Helper()
	for _, f := range set.Keys {
		if key, ok := f.Keys[name]; ok {
			return events.NewSigningKey(key.Private())
		}
	}
	t.Fatalf("the vectors have no key %q", name)
	return events.SigningKey{}
}

// memberNames returns the names of an object's members.
func memberNames(t testing.TB, object string) []string {
	t.Helper()
	return slices.Sorted(maps.Keys(membersOf(t, []byte(object))))
}

// withMemberRaw returns an object with one member added or replaced.
func withMemberRaw(t testing.TB, object, name, value string) []byte {
	t.Helper()
	members := membersOf(t, []byte(object))
	members[name] = jsontext.Value(value)
	return must(json.Marshal(members))
}

// withMember returns a message with one member of its envelope changed, added or (nil) taken away.
func withMember(t testing.TB, message []byte, name string, value any) []byte {
	t.Helper()
	members := membersOf(t, message)
	delete(members, name)
	if value != nil {
		members[name] = must(json.Marshal(value))
	}
	return must(json.Marshal(members))
}

// resigned returns a message whose data was changed, signed by the registry of someTrust again.
func resigned(t testing.TB, message string) []byte {
	t.Helper()
	data := membersOf(t, []byte(message))["data"]
	return withMember(t, []byte(message), "signature", testKey(0).Sign(must(events.Canonical(data))))
}

func membersOf(t testing.TB, object []byte) map[string]jsontext.Value {
	t.Helper()
	var members map[string]jsontext.Value
	if err := json.Unmarshal(object, &members); err != nil {
		t.Fatal(err)
	}
	return members
}
