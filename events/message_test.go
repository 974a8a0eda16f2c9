package events_test

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"omiappreg.org/keyrotation/events"
)

// The members of a request of each class that its parser takes, and a signature that it takes too:
// whether it verifies is not the parser's question.
var (
	someSignature = strings.Repeat("A", 86)
	rotationText  = `"new_public_key":"` + testKey(2).Public().String() + `","nonce":"` + someHash + `","context":"key_rotation"`
	revokeText    = `"app_id":"` + appText + `","service_id":"cms-article-77","timestamp":1,"nonce":"` + someHash + `","context":"decommission"`
	bindingText   = `"app_id":"` + appText + `","service_id":"cms-article-77","public_key":"` + testKey(2).Public().String() +
		`","timestamp":1,"nonce":"` + someHash + `","context":"service_binding"`
)

const (
	rotationTo = events.RotationSubject + appText + ".cms-article-77"
	revokeTo   = events.RevocationSubject + appText + ".cms-article-77"
	bindingTo  = events.BindingSubject + appText + ".cms-article-77"
)

// envelopeOf returns a message with this data, and further members of the envelope.
func envelopeOf(data string, members ...string) string {
	return `{"version":"1.0","data":` + data + `,"signature":"` + someSignature + `"` + strings.Join(members, "") + `}`
}

// rotationAt returns a rotation with this timestamp, as it stands in the text.
func rotationAt(number string) string {
	return envelopeOf(`{` + rotationText + `,"rotation_timestamp":` + number + `}`)
}

// withReceipt returns a revocation with this provider receipt: the one place for any JSON at all.
func withReceipt(value string) string {
	return envelopeOf(`{` + revokeText + `,"provider_receipt":` + value + `}`)
}

// nested returns objects and arrays in turn, so many deep.
func nested(depth int) string {
	s := `1`
	for i := range depth {
		if i%2 == depth%2 {
			s = `[` + s + `]`
		} else {
			s = `{"a":` + s + `}`
		}
	}
	return s
}

// TestNoncharacters: I-JSON has none (RFC 7493 §2.1), however they are written, in names and in
// values.
func TestNoncharacters(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]events.Reason{
		`"\uFFFE"`: events.MalformedMessage, `"\uffff"`: events.MalformedMessage, `"\uFDD0"`: events.MalformedMessage, `"\uFDEF"`: events.MalformedMessage,
		`"\uD83F\uDFFE"`: events.MalformedMessage, `"\uDBFF\uDFFF"`: events.MalformedMessage,
		"\"\uFFFE\"": events.MalformedMessage, "\"a\uFDD1\"": events.MalformedMessage, "\"\U0010FFFF\"": events.MalformedMessage,
		`["\uFFFF"]`: events.MalformedMessage, `{"\uFFFF":1}`: events.MalformedMessage,
		`"\uFFFD"`: "", `"\uFDCF\uFDF0\uFEFF"`: "", `"\uD83D\uDE00"`: "", "\"\uFFFD\U0010FFFD\"": "", `"\\uFFFF"`: "",
	} {
		if _, err := events.ParseRequest(revokeTo, []byte(withReceipt(`{"a":`+text+`}`))); reasonOf(err) != want {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	room := events.MaxMessage - len(withReceipt(""))
	full := withReceipt(string(objectOf(room)))
	blank := strings.Repeat(" ", events.MaxMessage-len(rotationAt("1")))
	for name, tc := range map[string]struct {
		subject, message string
		size             int
		want             events.Reason
	}{
		"8192 bytes":            {revokeTo, full, 8192, ""},
		"8193 bytes":            {revokeTo, withReceipt(string(objectOf(room + 1))), 8193, events.MalformedMessage},
		"8192 with white space": {rotationTo, rotationAt("1") + blank, 8192, ""},
		"8193 with white space": {rotationTo, rotationAt("1") + blank + " ", 8193, events.MalformedMessage},
		"8193 of nonsense":      {rotationTo, strings.Repeat("x", 8193), 8193, events.MalformedMessage},
	} {
		if len(tc.message) != tc.size {
			t.Fatalf("%s: the message has %d bytes", name, len(tc.message))
		}
		if _, err := events.ParseRequest(tc.subject, []byte(tc.message)); reasonOf(err) != tc.want {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

// TestDepth: the envelope is depth 1 and its data depth 2, so a provider receipt may add six.
func TestDepth(t *testing.T) {
	t.Parallel()
	for depth := 1; depth <= 40; depth++ {
		want := events.MalformedMessage
		if depth+2 <= 8 {
			want = ""
		}
		if _, err := events.ParseRequest(revokeTo, []byte(withReceipt(nested(depth)))); reasonOf(err) != want {
			t.Errorf("a receipt of %d levels: got %v, want %q", depth, err, want)
		}
	}
	for name, message := range map[string]string{
		"empty array at 9":   withReceipt(strings.Repeat(`{"a":`, 6) + `[]` + strings.Repeat(`}`, 6)),
		"in the envelope":    envelopeOf(`{`+rotationText+`}`, `,"x":`+nested(8)),
		"in place of data":   envelopeOf(nested(8)),
		"unfinished nesting": strings.Repeat(`{"a":`, 1000),
		"arrays":             strings.Repeat(`[`, 8000),
	} {
		if _, err := events.ParseRequest(revokeTo, []byte(message)); reasonOf(err) != events.MalformedMessage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	for number, want := range map[string]int64{"0": 0, "1": 1, "9007199254740991": math.MaxInt64 >> 10} {
		r, err := events.ParseRequest(rotationTo, []byte(rotationAt(number)))
		if err != nil || r.Timestamp != want {
			t.Errorf("timestamp %s: %v", number, err)
		}
	}
	for _, number := range []string{
		"9007199254740992", "-1", "-0", "1e3", "1E3", "1.0", "0.0", "1e400", "-9007199254740992", "1e-400",
		"9223372036854775807", "9223372036854775808", "18446744073709551616", strings.Repeat("9", 400),
		"null", "true", `"1"`, `""`, `[]`, `{}`, `[1]`,
	} {
		if _, err := events.ParseRequest(rotationTo, []byte(rotationAt(number))); reasonOf(err) != events.InvalidField {
			t.Errorf("timestamp %s: %v", number, err)
		}
	}
	for _, number := range []string{"01", "+1", "1.", ".1", "0x1", "1e", "NaN", "Infinity", "-", "1_0", "--1", ""} {
		if _, err := events.ParseRequest(rotationTo, []byte(rotationAt(number))); reasonOf(err) != events.MalformedMessage {
			t.Errorf("timestamp %s: %v", number, err)
		}
	}
}

// TestNumbersThatNobodyReads: a reader of another language would see another number than ours, so
// would sign another one.
func TestNumbersThatNobodyReads(t *testing.T) {
	t.Parallel()
	for number, want := range map[string]events.Reason{
		"9007199254740991":             "",
		"-9007199254740991":            "",
		"-0":                           "",
		"1.5e-7":                       "",
		"1e308":                        "",
		"5e-324":                       "",
		"9007199254740992":             events.InvalidField,
		"-9007199254740992":            events.InvalidField,
		"1e309":                        events.InvalidField,
		"-1e400":                       events.InvalidField,
		"1" + strings.Repeat("0", 400): events.InvalidField,
	} {
		for _, value := range []string{`{"n":` + number + `}`, `{"a":[{"b":[` + number + `]}]}`} {
			if _, err := events.ParseRequest(revokeTo, []byte(withReceipt(value))); reasonOf(err) != want {
				t.Errorf("provider_receipt %s: got %v, want %q", value, err, want)
			}
		}
	}
	// A text that is no text at all is that first, and another version is that before its numbers
	// are looked at.
	for message, want := range map[string]events.Reason{
		`{"a":1e400,`:                               events.MalformedMessage,
		`{"a":1e400,"a":1}`:                         events.MalformedMessage,
		`{"version":"1.1","data":{"a":1e400}}`:      events.UnsupportedVersion,
		`{"version":"1.0","x":9007199254740992}`:    events.InvalidField,
		`{"version":1.0,"data":{},"signature":"-"}`: events.InvalidField,
	} {
		if _, err := events.ParseRequest(revokeTo, []byte(message)); reasonOf(err) != want {
			t.Errorf("%s: got %v, want %q", message, err, want)
		}
	}
}

// TestTexts is what makes a text I-JSON or not (RFC 7493), and an envelope.
func TestTexts(t *testing.T) {
	t.Parallel()
	good := `"rotation_timestamp":1,` + rotationText
	for message, want := range map[string]events.Reason{
		envelopeOf(`{` + good + `}`):                                                      "",
		"\t\r\n " + envelopeOf("\n{ "+good+"\t}\r") + " \n":                               "",
		strings.Replace(envelopeOf(`{`+good+`}`), `"data"`, `"d\u0061ta"`, 1):             "", // a name by escapes is that name
		strings.Replace(envelopeOf(`{`+good+`}`), `key_rotation`, `key\u005Frotation`, 1): "",

		envelopeOf(`{` + good + `,"nonce":"` + someHash + `"}`):      events.MalformedMessage,
		envelopeOf(`{` + good + `,"nonc\u0065":"` + someHash + `"}`): events.MalformedMessage,
		envelopeOf(`{`+good+`}`, `,"v\u0065rsion":"1.0"`):            events.MalformedMessage,
		envelopeOf(`{` + good + `,"x":{"a":1,"\u0061":2}}`):          events.MalformedMessage,
		envelopeOf(`{` + good + `,"x":"\ud800"}`):                    events.MalformedMessage,
		envelopeOf(`{` + good + `,"\udc00":1}`):                      events.MalformedMessage,
		envelopeOf(`{` + good + ",\"x\":\"\xff\"}"):                  events.MalformedMessage,
		envelopeOf(`{` + good + ",\"x\":\"\xc0\x80\"}"):              events.MalformedMessage,
		envelopeOf(`{` + good + ",\"x\":\"\x00\"}"):                  events.MalformedMessage,
		envelopeOf(`{` + good + `,}`):                                events.MalformedMessage,
		envelopeOf(`{`+good+`}`) + "\x00":                            events.MalformedMessage,
		envelopeOf(`{`+good+`}`) + "//":                              events.MalformedMessage,
		envelopeOf(`{`+good+`}`) + envelopeOf(`{`+good+`}`):          events.MalformedMessage,
		`"` + strings.Repeat("a", 20) + `"`:                          events.MalformedMessage,
		" ":                                                          events.MalformedMessage,

		`{}`:                        events.InvalidField,
		envelopeOf(`null`):          events.InvalidField,
		envelopeOf(`[` + `1` + `]`): events.InvalidField,
		envelopeOf(`"{}"`):          events.InvalidField,
		envelopeOf(`{` + good + `,"rotation\u005ftimestamp2":1}`): events.InvalidField,
		envelopeOf(`{`+good+`}`, `,"\u0000":1`):                   events.InvalidField,
		envelopeOf(`{`+good+`}`, `,"":1`):                         events.InvalidField,

		strings.Replace(envelopeOf(`{`+good+`}`), `"1.0"`, `""`, 1):         events.UnsupportedVersion,
		strings.Replace(envelopeOf(`{`+good+`}`), `"1.0"`, `"1"`, 1):        events.UnsupportedVersion,
		strings.Replace(envelopeOf(`{`+good+`}`), `"1.0"`, `" 1.0"`, 1):     events.UnsupportedVersion,
		strings.Replace(envelopeOf(`{`+good+`}`), `"1.0"`, `"1\u002e0"`, 1): "",
		`{"version":"3"}`: events.UnsupportedVersion,
	} {
		if _, err := events.ParseRequest(rotationTo, []byte(message)); reasonOf(err) != want {
			t.Errorf("%q: got %v, want %q", message, err, want)
		}
	}
}

// TestNulls: null is a value, and no member's form allows it. It is not the same as leaving the
// member out.
func TestNulls(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ subject, data string }{
		{rotationTo, `{` + rotationText + `,"rotation_timestamp":1,"grace_period":0,"end_earlier":true,"origin":"a.example","app_id":"` + appText + `","service_id":"cms-article-77"}`},
		{bindingTo, `{` + bindingText + `,"service_type":"cms","endpoint_url":"https://a.example","origin":"a.example"}`},
		{revokeTo, `{` + revokeText + `,"provider_receipt":{},"origin":"a.example"}`},
	} {
		message := envelopeOf(c.data)
		if _, err := events.ParseRequest(c.subject, []byte(message)); err != nil {
			t.Errorf("%s: %v", message, err)
		}
		for _, name := range memberNames(t, c.data) {
			changed := envelopeOf(string(withMemberRaw(t, c.data, name, "null")))
			if _, err := events.ParseRequest(c.subject, []byte(changed)); reasonOf(err) != events.InvalidField {
				t.Errorf("%s of %s is null: %v", name, c.subject, err)
			}
		}
	}
	for _, name := range []string{"version", "data", "signature", "new_key_signature"} {
		changed := withMemberRaw(t, rotationAt("1"), name, "null")
		if _, err := events.ParseRequest(rotationTo, changed); reasonOf(err) != events.InvalidField {
			t.Errorf("%s is null: %v", name, err)
		}
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	for url, good := range map[string]bool{
		"https://a.example": true, "http://a.example:8080/x?y#z": true, "https://[::1]/": true, "HTTPS://A.example/": true,
		"": false, "/": false, "//a.example/": false, "a.example": false, "https:": false, "https://": false, "https:///x": false,
		"https://:443/": false, "ftp://a.example": false, "javascript:alert(1)": false, "file:///etc/passwd": false,
		"https:a.example": false, "https://a b.example/": false, "https://a.example/%zz": false, "https://a.example/\\u0001": false,
	} {
		message := envelopeOf(fmt.Sprintf(`{%s,"endpoint_url":"%s"}`, bindingText, url))
		if _, err := events.ParseRequest(bindingTo, []byte(message)); (err == nil) != good {
			t.Errorf("endpoint_url %q: %v", url, err)
		}
	}
}

// TestKindIsOurs: the kind of a refused request is one of the four, or none: it becomes a metric's
// label.
func TestKindIsOurs(t *testing.T) {
	t.Parallel()
	for _, data := range []string{
		`{"context":"a stranger's text","nonce":"!"}`,
		`{"context":"a stranger's text"}`,
		`{"context":"service_binding","nonce":"12345678"}`,
	} {
		r, err := events.ParseRequest(events.RotationSubject+appText+".cms", []byte(`{"version":"1.0","data":`+data+`,"signature":"`+strings.Repeat("A", 86)+`"}`))
		if err == nil || r.Kind != "" {
			t.Errorf("%s: kind %q, %v", data, r.Kind, err)
		}
	}
}

// TestContexts: a context belongs to one class of subjects.
func TestContexts(t *testing.T) {
	t.Parallel()
	for kind, d := range drafts() {
		message := must(d.Sign(testKey(1)))
		for _, subject := range []string{rotationTo, bindingTo, revokeTo} {
			_, err := events.ParseRequest(subject, message)
			if good := subject == d.Subject(); good != (err == nil) {
				t.Errorf("%s on %s: %v", kind, subject, err)
			}
		}
	}
}

// TestNonceOfRefused: a receipt of what can't be read still names the request, where there is a
// nonce to read.
func TestNonceOfRefused(t *testing.T) {
	t.Parallel()
	for message, want := range map[string]string{
		envelopeOf(`{` + rotationText + `}`):                        someHash,
		strings.Replace(rotationAt("1"), `"1.0"`, `"2.0"`, 1):       someHash,
		strings.Replace(rotationAt("1"), `"signature"`, `"sig"`, 1): someHash,
		rotationAt("1e400"): someHash,
		strings.Replace(rotationAt("-1"), someHash, `n7b2v9x4\u0061aaaaaaaaaaaaa`, 1): someHash,
		strings.Replace(rotationAt("-1"), someHash, `short`, 1):                       "",
		strings.Replace(rotationAt("-1"), `"`+someHash+`"`, `17`, 1):                  "",
		strings.Replace(rotationAt("-1"), `"nonce"`, `"Nonce"`, 1):                    "",
		`{"version":"1.0","nonce":"` + someHash + `","data":{},"signature":""}`:       "",
		rotationAt("1") + "x": "", // two readers may read two texts
	} {
		r, err := events.ParseRequest(rotationTo, []byte(message))
		if err == nil || r == nil || r.Target != someTarget() || r.Nonce.String() != want {
			t.Errorf("%s: %v, %v; want the nonce %q", message, r, err, want)
		}
	}
}

// TestSignedAsReceived: what the reader does not know is signed too, so a change to it is seen.
func TestSignedAsReceived(t *testing.T) {
	t.Parallel()
	i := someInvalidation(events.KeyRotation)
	later := resigned(t, strings.Replace(string(i.Sign(testKey(0))), `"sequence":2`, `"sequence":2,"zeal":{"b":1e1,"a":"\u0041"}`, 1))
	if _, err := someTrust().Invalidation(i.Subject(), later); err != nil {
		t.Errorf("a member of a later version: %v", err)
	}
	for from, to := range map[string]string{`1e1`: `1e2`, `"zeal"`: `"zest"`, `"b"`: `"c"`} {
		changed := bytes.Replace(later, []byte(from), []byte(to), 1)
		if _, err := someTrust().Invalidation(i.Subject(), changed); reasonOf(err) != events.UntrustedSignature {
			t.Errorf("%s changed to %s: %v", from, to, err)
		}
	}
	// The same values in other bytes are the same data.
	same := bytes.Replace(later, []byte(`1e1`), []byte(` 10.0`), 1)
	if _, err := someTrust().Invalidation(i.Subject(), same); err != nil {
		t.Errorf("1e1 written as 10.0: %v", err)
	}
}

// TestSignedMembers: what is signed is the canonical form of all members, whatever they hold and
// however it is written.
func TestSignedMembers(t *testing.T) {
	t.Parallel()
	i := someInvalidation(events.KeyRotation)
	message := string(i.Sign(testKey(0)))
	was := string(membersOf(t, []byte(message))["signature"])
	for _, members := range []string{
		`"n":1.50`, `"n" : 1`, `"n":-0`, `"n":-7`, `"n":1E2`, `"n":0`, `"n":999999999999999`, `"n":1000000000000000`, `"n":9007199254740991`, `"n":0.0`,
		`"b":true,"a":false,"c":null`, `"s":"\u0041\/\n\u001f"`, `"s":"é\u00e9"`, `"s":""`, `"o":{"b":1,"a":[1.0,{"d":1,"c":2}]}`, `"l":[ ]`,
		`"\u0061\/":1`, `"\"":1,"\\":2,"!":3`, `"":1`, `"é":1,"z":2`, `"｡":1,"😀":2`, "\"\x7f\":1,\"~\":2", `"Zeal":1,"zeal":2,"app":3`,
		`"m1":1,"m2":2,"m3":3,"m4":4,"m5":5,"m6":6,"m7":7`,
	} {
		for _, place := range []string{`"origin"`, `"event"`} { // in front, and in the middle
			text := strings.Replace(message, place, members+" , "+place, 1)
			canonical := must(events.Canonical(membersOf(t, []byte(text))["data"]))
			text = strings.Replace(text, was, `"`+testKey(0).Sign(canonical).String()+`"`, 1)
			got, err := someTrust().Invalidation(i.Subject(), []byte(text))
			if err != nil {
				t.Errorf("%s: %v", text, err)
			} else if diff := cmp.Diff(i, got, exact); diff != "" {
				t.Errorf("%s:\n%s", text, diff)
			}
			tampered := strings.Replace(text, members, members+`,"q":1`, 1)
			if _, err := someTrust().Invalidation(i.Subject(), []byte(tampered)); reasonOf(err) != events.UntrustedSignature {
				t.Errorf("%s: %v", tampered, err)
			}
		}
	}
}
