package schema_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/keyformat"
	"omiappreg.org/keyrotation/internal/vectors"
)

// messages are the compiled schemas, by the names of their files without the ending.
type messages map[string]*jsonschema.Schema

// compile reads every schema. The compiler checks each against the schema of schemas.
func compile(t testing.TB) messages {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("messages", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	all := messages{}
	for _, file := range files {
		compiler := jsonschema.NewCompiler() // one for each: it finds other schemas by their ids
		compiler.UseLoader(byID{t})
		compiled, err := compiler.Compile(schemaBase + filepath.Base(file))
		if err != nil {
			t.Fatalf("%+v", err)
		}
		if compiled.DraftVersion != 2020 {
			t.Errorf("%s is of draft %d", file, compiled.DraftVersion)
		}
		all[strings.TrimSuffix(filepath.Base(file), ".json")] = compiled
	}
	return all
}

// schemaBase is the beginning of every schema's id.
const schemaBase = "https://omiappreg.org/keyrotation/schema/messages/"

// byID loads a schema by its id, and by nothing else.
type byID struct{ t testing.TB }

// Load implements [jsonschema.URLLoader].
func (l byID) Load(id string) (any, error) {
	name, ok := strings.CutPrefix(id, schemaBase)
	if !ok {
		return nil, fmt.Errorf("%s is no schema of ours", id)
	}
	document := readJSON(l.t, "messages/"+name)
	if members, _ := document.(map[string]any); members["$id"] != id {
		l.t.Errorf("%s has the id %v", name, members["$id"])
	}
	return document, nil
}

// check returns nil if the text is a message of that name.
func (m messages) check(name string, text []byte) error {
	schema, ok := m[name]
	if !ok {
		return fmt.Errorf("there is no schema %q", name)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return err
	}
	return schema.Validate(value)
}

// ofSubject is the schema of a request on this subject.
func ofSubject(subject string) string {
	for prefix, name := range map[string]string{
		events.RotationSubject: "rotation", events.BindingSubject: "binding", events.RevocationSubject: "revocation",
	} {
		if strings.HasPrefix(subject, prefix) {
			return name
		}
	}
	return ""
}

// TestVectorRequests: a request that passes the contract's checks of form validates. A request that
// is refused for its form doesn't, unless no schema can tell.
func TestVectorRequests(t *testing.T) {
	t.Parallel()
	schemas := compile(t)
	untold := map[string]bool{}
	for _, f := range vectors.Load(t).Requests {
		for _, c := range f.Cases {
			err := schemas.check(ofSubject(c.Subject), c.Message())
			_, parseErr := events.ParseRequest(c.Subject, c.Message())
			switch reason := reasonOf(parseErr); {
			case reason == "" && err != nil:
				t.Errorf("%s: it is in good form, and does not validate: %v", c.Name, err)
			case reason != "" && err == nil:
				untold[c.Name] = true
			}
		}
	}
	checkUntold(t, untold, "duplicate-member", "duplicate-member-in-data", "timestamp-as-1e9-form", "too-large")
}

// TestVectorEvents is the same for events.
func TestVectorEvents(t *testing.T) {
	t.Parallel()
	schemas := compile(t)
	untold := map[string]bool{}
	for _, f := range vectors.Load(t).Events {
		trust := trustIn(t, f.Origin, f.TrustedRegistryKeys...)
		for _, c := range f.Events {
			err := schemas.check("invalidation", c.Message())
			_, parseErr := trust.Invalidation(c.Subject, c.Message())
			switch reason := reasonOf(parseErr); reason {
			case "":
				if err != nil {
					t.Errorf("%s: it is applied, and does not validate: %v", c.Name, err)
				}
			case events.MalformedMessage, events.UnsupportedVersion, events.InvalidField, events.UnknownEvent:
				if err == nil {
					untold[c.Name] = true
				}
			}
		}
	}
	checkUntold(t, untold, "duplicate-member", "end-earlier-with-grace")
}

// checkUntold compares the messages that validate and are refused for their form with the list of
// those that no schema can tell.
func checkUntold(t *testing.T, got map[string]bool, want ...string) {
	t.Helper()
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want) {
		t.Errorf("vectors that validate, and are refused for their form:\n got %q\nwant %q", names, want)
	}
}

func reasonOf(err error) events.Reason {
	if refusal := (*events.Refusal)(nil); errors.As(err, &refusal) {
		return refusal.Reason
	}
	if err != nil {
		return events.Reason(err.Error())
	}
	return ""
}

func trustIn(t testing.TB, origin string, keys ...string) events.Trust {
	t.Helper()
	list := make([]events.PublicKey, len(keys))
	for i, text := range keys {
		list[i] = must(events.ParsePublicKey(text))
	}
	return must(events.NewTrust(origin, list...))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestWhatWeSend: every message that the project's code makes validates.
func TestWhatWeSend(t *testing.T) {
	t.Parallel()
	schemas := compile(t)
	for what, texts := range sent(t) {
		for _, text := range texts {
			if err := schemas.check(what, text); err != nil {
				t.Errorf("%s: %s: %v", what, text, err)
			}
			if what == "jwks" { // others may add members
				continue
			}
			for _, spoilt := range [][]byte{spoil(t, text), []byte("[]")} {
				if err := schemas.check(what, spoilt); err == nil {
					t.Errorf("%s: validates spoilt: %s", what, spoilt)
				}
			}
		}
	}
	for name := range schemas {
		if _, ok := sent(t)[name]; !ok && name != "defs" && name != "envelope" {
			t.Errorf("nothing that is sent was held against the schema %s", name)
		}
	}
}

// spoil removes one member of the top object that a message must have.
func spoil(t *testing.T, text []byte) []byte {
	t.Helper()
	var members map[string]any
	if err := json.Unmarshal(text, &members); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"data", "signature", "origin", "result", "public_key", "title", "after", "request_nonce"} {
		if _, ok := members[name]; ok {
			delete(members, name)
			return must(json.Marshal(members))
		}
	}
	t.Fatalf("what can be taken away from %s?", text)
	return nil
}

const (
	origin = "omiappreg.org"
	now    = int64(1_705_412_600)
)

func sent(t testing.TB) map[string][][]byte {
	t.Helper()
	registry, key, next := events.GenerateSigningKey(), events.GenerateSigningKey(), events.GenerateSigningKey()
	target := must(events.ParseTarget("org.omiappreg.alice.business_app.7f8a9d.cms-article-77"))
	zero, until := int64(0), now+300
	draft := func(kind events.RequestKind, change func(*events.Draft)) []byte {
		d := events.Draft{Kind: kind, Target: target, Timestamp: now, Nonce: events.NewNonce(), NewKey: next, Origin: origin}
		change(&d)
		return must(d.Sign(key))
	}
	event := func(kind events.EventKind, sequence int64) []byte {
		i := events.Invalidation{
			Origin: origin, Target: target, Event: kind, OldKey: key.Public(), NewKey: next.Public(), GracePeriodExpiry: now,
			Timestamp: now, Nonce: events.NewNonce(), Sequence: sequence,
		}
		switch kind {
		case events.ServiceBinding:
			i.OldKey = events.PublicKey{}
		case events.ServiceRevocation:
			i.NewKey = events.PublicKey{}
		}
		return i.Sign(registry)
	}
	emergency := events.Invalidation{
		Origin: origin, Target: target, Event: events.KeyRotation, OldKey: key.Public(), NewKey: next.Public(), GracePeriodExpiry: now,
		Timestamp: now, Nonce: events.NewNonce(), Sequence: 2, EndEarlier: true,
	}
	committed := events.Receipt{
		Origin: origin, Target: target, Event: events.RequestCommitted, RequestNonce: events.NewNonce(), Timestamp: now,
		Nonce: events.NewNonce(), Sequence: 2, PublicKey: next.Public(), GracePeriodExpiry: now + 300, EventNonce: events.NewNonce(),
	}
	revoked := committed
	revoked.PublicKey = events.PublicKey{}
	rejected := events.Receipt{
		Origin: origin, Target: target, Event: events.RequestRejected, Timestamp: now, Nonce: events.NewNonce(),
		Reason: events.WeakKey, Detail: "No.", RequestHash: events.RequestHash(nil),
	}
	record := events.ServiceRecord{
		Origin: origin, AppID: target.App, ServiceID: target.Service, Status: events.Active, Sequence: 2, BoundAt: now - 60,
		Current: events.CurrentKey{PublicKey: next.Public(), Since: now}, Grace: []events.GraceKey{{PublicKey: key.Public(), Expires: until}},
		Propagation: map[string]bool{"authsub": true}, OtherDurables: map[string]bool{"audit": false},
		ServiceType: "cms-article", EndpointURL: "https://i77.article.cms.io/api/v1", Timestamp: now,
	}
	gone := record
	gone.Status, gone.Current, gone.Grace, gone.Propagation = events.Revoked, events.CurrentKey{}, nil, nil
	gone.ProviderReceipt = []byte(`{"kept":[null]}`)
	busy := record
	busy.NextRotationAt = now + 60
	history := events.ServiceHistory{
		Origin: origin, AppID: target.App, ServiceID: target.Service, Sequence: 2, Timestamp: now,
		Keys: []events.HistoryKey{
			{PublicKey: key.Public(), Event: events.ServiceBinding, Sequence: 1, From: now - 60, Until: &until},
			{PublicKey: next.Public(), Event: events.KeyRotation, Sequence: 2, From: now},
		},
	}
	part := history
	part.More = true
	notice := events.Notice{
		Origin: origin, App: target.App, Event: events.MasterKeyReplaced, OldKey: key.Public(), NewKey: next.Public(), Timestamp: now,
	}
	all := func(values ...any) (texts [][]byte) {
		for _, v := range values {
			texts = append(texts, must(json.Marshal(v)))
		}
		return texts
	}
	return map[string][][]byte{
		"rotation": {draft(events.Rotation, func(*events.Draft) {}), draft(events.Rotation, func(d *events.Draft) { d.GracePeriod, d.EndEarlier = &zero, true })},
		"binding": {
			draft(events.Binding, func(d *events.Draft) { d.ServiceType, d.EndpointURL = "cms-article", "HTTP://[::1]:8080/api" }),
			draft(events.Reset, func(*events.Draft) {}),
		},
		"revocation": {draft(events.Revocation, func(d *events.Draft) { d.NewKey, d.ProviderReceipt = events.SigningKey{}, []byte(`{"a":[1]}`) })},
		"invalidation": {
			event(events.ServiceBinding, 1), event(events.KeyRotation, 2), event(events.MasterReset, 3), event(events.ServiceRevocation, 4),
			event(events.KeyRotation, 0), // without a sequence
			emergency.Sign(registry),
		},
		"receipt":        {committed.Sign(registry), revoked.Sign(registry), rejected.Sign(registry)},
		"notice":         {notice.Sign(registry)},
		"service-record": {record.Sign(registry), busy.Sign(registry), gone.Sign(registry)},
		"history":        {history.Sign(registry), part.Sign(registry)},
		"history-query":  {events.HistoryQuery(0), events.HistoryQuery(2048), []byte(`{"after":1,"limit":1}`)},
		"key-query":      {events.KeyQuery(key.Public())},
		"key-record": {
			events.KeyRecord{Origin: origin, PublicKey: key.Public(), Timestamp: now}.Sign(registry),
			events.KeyRecord{
				Origin: origin, PublicKey: key.Public(), AppID: target.App, ServiceID: target.Service, Event: events.KeyRotation,
				Sequence: 2, From: now, Until: &until, Timestamp: now,
			}.Sign(registry),
		},
		"receipt-query": {
			events.ReceiptQuery{RequestNonce: events.NewNonce()}.Encode(),
			events.ReceiptQuery{RequestNonce: events.NewNonce(), RequestHash: events.RequestHash(nil)}.Encode(),
		},
		"registry-info": all(events.RegistryInfo{Origin: origin, PublicKeys: []events.PublicKey{registry.Public()}, RequireProof: events.ProofsOwn}),
		"verify-query": {
			must(events.VerifyQuery{Target: target, Message: []byte("hi"), Signature: key.Sign(nil)}.Encode()),
			must(events.VerifyQuery{Target: target, Signature: key.Sign(nil)}.Encode()),
		},
		"verify-answer": all(
			events.VerifyAnswer{Result: events.Accepted, Key: events.KeyCurrent, PublicKey: key.Public(), Sequence: 2, AsOf: now},
			events.VerifyAnswer{Result: events.Accepted, Key: events.KeyGrace, PublicKey: key.Public(), Expires: until},
			events.VerifyAnswer{Result: events.Refused, Reason: events.RevokedService, AsOf: now},
		),
		"attribute-query": {fmt.Appendf(nil, `{"public_key":"%s","at":%d}`, key.Public(), now)},
		"attribute-answer": all(
			events.AttributeAnswer{Result: events.Valid, AppID: target.App, ServiceID: target.Service, From: now},
			events.AttributeAnswer{Result: events.Invalid, Reason: events.ExpiredKey, AppID: target.App, ServiceID: target.Service, From: now, Until: &until},
			events.AttributeAnswer{Result: events.Invalid, Reason: events.UnknownKey},
		),
		"problem": all(
			api.UnknownService("Nobody knows.", nil),
			api.UnknownService("Nobody knows.", events.Unbound{Origin: origin, AppID: target.App, ServiceID: target.Service, Timestamp: now}.Sign(registry)),
			api.Problem{Title: "Bad Request", Status: 400, Detail: "No.", Reason: "invalid_field"},
		),
		"jwks": all(map[string]any{"keys": []keyformat.JSONWebKey{keyformat.NewJSONWebKey(key.Public())}}),
	}
}

// FuzzRequestSchema: every request that the parser accepts validates. The reverse doesn't hold: a
// schema doesn't see how a number is written, or what no JSON text may contain.
func FuzzRequestSchema(f *testing.F) {
	schemas := compile(f)
	for _, file := range vectors.Load(f).Requests {
		for _, c := range file.Cases {
			f.Add(c.Subject, c.Message())
		}
	}
	f.Fuzz(func(t *testing.T, subject string, message []byte) {
		if _, err := events.ParseRequest(subject, message); err != nil {
			return
		}
		if err := schemas.check(ofSubject(subject), message); err != nil {
			t.Errorf("%s on %s is in good form, and does not validate: %v", message, subject, err)
		}
	})
}
