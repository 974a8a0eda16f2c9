package events_test

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
)

// TestDetailQuotesNothing: whatever is wrong with a message, the sentence about it repeats none of
// its values, nor key material in the place of a name. Receipts are public, and somebody will paste
// a private key one day.
func TestDetailQuotesNothing(t *testing.T) {
	t.Parallel()
	refused := map[events.Reason]int{}
	check := func(t *rapid.T) {
		m := drawSpoilt(t)
		_, asRequest := events.ParseRequest(m.subject, m.text)
		_, asEvent := someTrust().Invalidation(m.subject, m.text)
		_, asReceipt := someTrust().Receipt(m.subject, m.text)
		_, asRecord := someTrust().ServiceRecord(someTarget(), m.text)
		_, asVerify := events.ParseVerifyQuery(m.text)
		_, asAttribute := events.ParseAttributeQuery(m.text)
		for _, err := range []error{asRequest, asEvent, asReceipt, asRecord, asVerify, asAttribute} {
			refusal := (*events.Refusal)(nil)
			if !errors.As(err, &refusal) {
				continue
			}
			refused[refusal.Reason]++
			if refusal.Detail == "" {
				t.Fatalf("%s has no detail", refusal.Reason)
			}
			for _, secret := range m.secrets {
				if strings.Contains(refusal.Error(), secret) {
					t.Fatalf("%q repeats %q of the message %s", refusal.Error(), secret, m.text)
				}
			}
		}
	}
	rapid.Check(t, check)
	if testing.Short() {
		return // so few are drawn that one may be missing
	}
	for tries := 0; tries < 4 && refused[events.UnsupportedVersion] == 0; tries++ {
		rapid.Check(t, check) // of a hundred, none may be that
	}
	for _, reason := range []events.Reason{
		events.MalformedMessage, events.UnsupportedVersion, events.InvalidField, events.UntrustedSignature,
	} {
		if refused[reason] == 0 {
			t.Errorf("no message was refused as %s: the test looks at too little", reason)
		}
	}
}

// TestDetailOfEachMember puts key material in the place of every member, one by one.
func TestDetailOfEachMember(t *testing.T) {
	t.Parallel()
	seed := testKey(3).Private().Seed()
	event := someInvalidation(events.KeyRotation)
	messages := map[string][]byte{event.Subject(): event.Sign(testKey(0))}
	for _, d := range drafts() {
		messages[d.Subject()] = must(d.Sign(testKey(1)))
	}
	for subject, message := range messages {
		data := string(membersOf(t, message)["data"])
		for _, secret := range []string{hex.EncodeToString(seed), base64.RawURLEncoding.EncodeToString(seed), "ed25519:" + hex.EncodeToString(seed)} {
			var changed [][]byte
			for _, name := range append(memberNames(t, string(message)), secret) {
				changed = append(changed, withMember(t, message, name, secret))
			}
			for _, name := range append(memberNames(t, data), secret) {
				inside := withMemberRaw(t, data, name, `"`+secret+`"`)
				changed = append(changed, resigned(t, string(withMemberRaw(t, string(message), "data", string(inside)))))
			}
			for _, text := range changed {
				_, asRequest := events.ParseRequest(subject, text)
				_, asEvent := someTrust().Invalidation(subject, text)
				for _, err := range []error{asRequest, asEvent} {
					if err != nil && strings.Contains(err.Error(), secret) {
						t.Errorf("%q repeats what it found in %s", err, text)
					}
				}
			}
		}
	}
}

// TestDetailOfSyntax: the decoder's own errors tell the path to what is wrong, which whoever wrote
// the text chose.
func TestDetailOfSyntax(t *testing.T) {
	t.Parallel()
	secret := hex.EncodeToString(testKey(3).Private().Seed())
	for _, text := range []string{
		`{"data":{"` + secret + `":{"a":tru}}}`, `{"` + secret + `":1,"` + secret + `":2}`, `{"` + secret + `":`, `{"a":` + secret + `}`,
		`{"data":{"` + secret + `":"\ud800"}}`, `{"a":"` + secret + `\x"}`, `{"a":1} ` + secret, secret,
	} {
		_, err := events.ParseRequest(rotationTo, []byte(text))
		if reasonOf(err) != events.MalformedMessage || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// spoilt is a message that was in good form before some of its members were changed.
type spoilt struct {
	subject string
	text    []byte
	secrets []string // what no sentence about it may repeat
}

func drawSpoilt(t *rapid.T) spoilt {
	m := drawGood(t)
	for range rapid.IntRange(1, 2).Draw(t, "changes") {
		m.change(t)
	}
	at := rapid.IntRange(0, len(m.text)).Draw(t, "at")
	switch rapid.IntRange(0, 8).Draw(t, "text") {
	case 0:
		m.text = m.text[:at]
	case 1:
		m.text = slices.Concat(m.text, m.text)
	case 2:
		noise := rapid.SampledFrom([]string{"\xff", "\\", "\"", "}", "\x00", ","}).Draw(t, "noise")
		m.text = slices.Concat(m.text[:at], []byte(noise), m.text[at:])
	}
	return m
}

func drawGood(t *rapid.T) spoilt {
	// Not the ids that the sentences give as examples.
	target := must(events.ParseTarget("org.example.bob-and-more.warehouse.north-12345"))
	kind := rapid.SampledFrom([]events.RequestKind{events.Rotation, events.Binding, events.Revocation}).Draw(t, "kind")
	d, i := drafts()[kind], someInvalidation(events.KeyRotation)
	d.Target, i.Target = target, target
	m := spoilt{
		subject: d.Subject(), text: must(d.Sign(testKey(1))),
		secrets: []string{
			target.App.String(), target.Service.String(), someHash, strconv.FormatInt(now, 10),
			testKey(1).Public().String(), testKey(2).Public().String(), "as it came",
		},
	}
	if rapid.Bool().Draw(t, "from the registry") {
		m.subject, m.text = i.Subject(), i.Sign(testKey(0))
	}
	return m
}

// change puts a value in the place of a member, or adds one. It leaves what is no JSON object as it
// is.
func (m *spoilt) change(t *rapid.T) {
	var envelope, data map[string]jsontext.Value
	if json.Unmarshal(m.text, &envelope) != nil {
		return
	}
	if signature := strings.Trim(string(envelope["signature"]), `"`); len(signature) == 86 {
		m.secrets = append(m.secrets, signature)
	}
	into := envelope
	if rapid.Bool().Draw(t, "in data") && json.Unmarshal(envelope["data"], &data) == nil && data != nil {
		into = data
	}
	known := append(slices.Sorted(maps.Keys(into)), "version", "nonce", "key_id", "weight")
	name, value := rapid.SampledFrom(known).Draw(t, "name"), drawSecret(t)
	if rapid.IntRange(0, 3).Draw(t, "as name") == 0 {
		name = drawSecret(t)
		m.secrets = append(m.secrets, name)
	}
	m.secrets = append(m.secrets, value)
	quoted := string(must(json.Marshal(value)))
	into[name] = jsontext.Value(rapid.SampledFrom([]string{
		quoted, quoted, quoted, `{"seed":[` + quoted + `]}`, "null", "[]", `"2.0"`, "12345678901234567890", "-87654321", "1e4001234",
	}).Draw(t, "value"))
	m.secrets = append(m.secrets, "12345678901234567890", "87654321", "4001234")
	if data != nil {
		envelope["data"] = must(json.Marshal(data, json.Deterministic(true)))
	}
	m.text = must(json.Marshal(envelope, json.Deterministic(true)))
}

// drawSecret draws key material in the forms that people paste.
func drawSecret(t *rapid.T) string {
	b := rapid.SliceOfN(rapid.Byte(), 32, 64).Draw(t, "secret")
	return rapid.SampledFrom([]string{
		hex.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b), base64.StdEncoding.EncodeToString(b),
		"ed25519:" + base64.RawURLEncoding.EncodeToString(b), "-----BEGIN PRIVATE KEY-----\n" + base64.StdEncoding.EncodeToString(b),
	}).Draw(t, "form")
}
