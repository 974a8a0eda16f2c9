package events_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/vectors"
)

// TestRequestsAreReserved: what a registry would take for a request's data is not signed for
// others, in whatever dress.
func TestRequestsAreReserved(t *testing.T) {
	t.Parallel()
	all := drafts()
	all["emergency"] = emergencyDraft()
	for kind, d := range all {
		message := must(d.Sign(testKey(1)))
		r := must(events.ParseRequest(d.Subject(), message))
		data := string(r.Signed)
		escaped := strings.NewReplacer(`"context"`, `"\u0063ontext"`, `"`+string(r.Kind)+`"`, `"`+escapedText(string(r.Kind))+`"`).Replace(data)
		for name, text := range map[string]string{
			"canonical":           data,
			"envelope":            string(message),
			"escaped":             escaped,
			"in an envelope":      envelopeOf(escaped),
			"white space":         "\n\t " + strings.NewReplacer(`:`, " :\r\n ", `,`, " ,\t").Replace(data) + "\n",
			"byte order mark":     "\ufeff" + data,
			"NUL":                 "\x00" + data,
			"twice, good first":   `{"context":"invoice",` + data[1:],
			"twice, good last":    strings.TrimSuffix(data, "}") + `,"context":"invoice"}`,
			"data twice":          `{"data":{},"data":` + data + `}`,
			"in another case":     strings.Replace(data, `"context"`, `"Context"`, 1),
			"something behind":    data + "\nThank you for your order.",
			"not ended":           strings.TrimSuffix(data, "}"),
			"after nested things": `{"a":{"data":{"x":"}"}},"b":["{",{"c":"\"}"}],` + data[1:],
			"after bad UTF-8":     "{\"a\":\"\xff\"," + data[1:],
			"after bad escapes":   `{"a":"\x\ud800",` + data[1:],
			"with comments":       `{/* a */` + data[1:],
			"two objects":         `{"a":1}` + data,
			"other members":       `{"total":12,` + data[1:],
		} {
			err := events.CheckMessage([]byte(text))
			if !errors.Is(err, events.ErrReserved) || !strings.Contains(err.Error(), string(r.Kind)) {
				t.Errorf("%s, %s: %v\n%s", kind, name, err, text)
			}
		}
	}
}

func escapedText(s string) string {
	var text strings.Builder
	for _, c := range []byte(s) {
		text.WriteString(`\u00` + hex.EncodeToString([]byte{c}))
	}
	return text.String()
}

// TestVectorsAreReserved: no request that another implementation made either. The few that have no
// readable context are refused by every registry.
func TestVectorsAreReserved(t *testing.T) {
	t.Parallel()
	n := 0
	for _, file := range vectors.Load(t).Requests {
		for _, c := range file.Cases {
			r, err := events.ParseRequest(c.Subject, c.Message())
			if err != nil {
				continue
			}
			n++
			for _, text := range [][]byte{r.Signed, c.Message()} {
				if err := events.CheckMessage(text); !errors.Is(err, events.ErrReserved) {
					t.Errorf("%s: %v", c.Name, err)
				}
			}
		}
	}
	if n == 0 {
		t.Error("there are no requests")
	}
}

// TestBasesAreReserved: nothing that begins as a signature base does, whatever it goes on with.
func TestBasesAreReserved(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"\"@method\": POST\n\"@target-uri\": https://a.example/pay\n\"@signature-params\": (\"@method\" \"@target-uri\");created=1",
		`"@method": POST`, `"@signature-params": ();created=1705412600;keyid="org.example.shop.cms"`, `"content-digest": sha-256=:AA==:`,
		`"@query-param";name="a": b`, `"cache-control";sf: max-age=1`, `"x-empty": `, "\n\"@method\": GET", "\ufeff\"@method\": GET",
		`"@omi-subject": a.b`,
	} {
		if err := events.CheckMessage([]byte(text)); !errors.Is(err, events.ErrReserved) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestWhatIsSigned: all else is, also what speaks of requests.
func TestWhatIsSigned(t *testing.T) {
	t.Parallel()
	registry, i := testKey(0), someEmergency()
	for _, text := range []string{
		"", "hello", "\n", "{", "{}", "[]", "null", `"`, `"hello"`, `"hello": `[:8], `"Hello": world`, `"hello", "@method": GET`, "%PDF-1.7",
		`{"total":12,"currency":"EUR"}`,
		`{"context":"invoice"}`, `{"context":1}`, `{"context":["key_rotation"]}`, `{"key_rotation":"context"}`,
		`{"note":"context","kind":"key_rotation"}`, `{"log":[{"context":"key_rotation"}]}`, `{"a":{"context":"decommission"}}`,
		`{"a":{"data":{"context":"master_reset"}}}`, `{"data":[{"context":"decommission"}]}`, `{"data":"{\"context\":\"decommission\"}"}`,
		`[{"context":"key_rotation"}]`, `x {"context":"key_rotation"}`, `the "context":"key_rotation" of a request`,
		"GET / HTTP/1.1\r\nHost: a.example\r\n", "eyJhbGciOiJFZERTQSJ9.e30",
		string(i.Sign(registry)), // what the registry itself signs is no request
		strings.Repeat("{", 100_000), strings.Repeat(`"`, 99_999), strings.Repeat(`{"data":`, 50_000), strings.Repeat(`\`, 10), `{"\`, `{"context":"\`,
	} {
		if err := events.CheckMessage([]byte(text)); err != nil {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

// FuzzCheckMessage: whatever is a request to a registry is refused.
func FuzzCheckMessage(f *testing.F) {
	for _, d := range drafts() {
		f.Add(string(d.Kind), must(d.Sign(testKey(1))))
	}
	f.Fuzz(func(t *testing.T, _ string, message []byte) {
		reserved := events.CheckMessage(message) != nil
		for _, subject := range []string{rotationTo, bindingTo, revokeTo} {
			r, err := events.ParseRequest(subject, message)
			if err == nil && (!reserved || events.CheckMessage(r.Signed) == nil) {
				t.Errorf("a request is not reserved: %s", message)
			}
			data := fmt.Sprintf(`{"version":"1.0","data":%s,"signature":"%s"}`, message, someSignature)
			if _, err := events.ParseRequest(subject, []byte(data)); err == nil && !reserved {
				t.Errorf("the data of a request are not reserved: %s", message)
			}
		}
	})
}

// TestCheckingCostsLittle: a long invoice is looked through without a copy of each of its strings,
// so that to sign it costs little more.
func TestCheckingCostsLittle(t *testing.T) {
	t.Parallel()
	invoice := []byte(`{"context":"invoice","lines":[` + strings.Repeat(`{"article":"7f8a9d","name":"caf\u00e9","pieces":12},`, 1000) + `{}]}`)
	allocated := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if err := events.CheckMessage(invoice); err != nil {
				b.Fatal(err)
			}
		}
	}).AllocsPerOp()
	if allocated > 200 { // a copy of each would be thousands; tests that run at the same time add some
		t.Errorf("%d allocations for 1,000 lines", allocated)
	}
}
