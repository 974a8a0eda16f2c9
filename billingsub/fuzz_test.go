package billingsub_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api/apitest"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// FuzzAttribute: whatever is asked of a Billing Service, in either way, it gives one of §8.3's answers or a problem document
// that blames whoever asked; and both ways the same.
func FuzzAttribute(f *testing.F) {
	w := newWorld(f, testenv.Database(f, testenv.SQLite))
	s := subtest.NewService(f, "bound")
	w.registry.Publish(f, w.js, s.Bind(start), s.Rotate(start+60, 300))
	w.caughtUp(f)
	door := apitest.Open(f, w.nc, w.billing.Endpoints()...)
	question := func(key events.SigningKey, at int64) string {
		return fmt.Sprintf(`{"public_key":"%s","at":%d}`, key.Public(), at)
	}
	for _, text := range []string{
		question(s.Keys[0], start), question(s.Keys[0], start-1), question(s.Keys[0], start+360), question(s.Keys[0], start+359), question(s.Keys[1], start), question(s.Keys[1], start+1000),
		question(events.GenerateSigningKey(), start), "", "{}", "[]", `{"at":-1}`, strings.Repeat(" ", events.MaxQuery+1),
	} {
		f.Add("POST", "/v1/attribute", "Content-Type: application/json", []byte(text))
	}
	f.Add("GET", "/v1/attribute", "", []byte(nil))
	f.Fuzz(func(t *testing.T, method, target, header string, body []byte) {
		door.BothWays(t, "/v1/attribute", method, target, header, body, checkAnswer, func(a apitest.Answer) string { return string(a.Body) })
	})
}

func checkAnswer(t *testing.T, question []byte, a apitest.Answer) {
	t.Helper()
	var answer events.AttributeAnswer
	err := json.Unmarshal(a.Body, &answer, json.RejectUnknownMembers(true))
	q, badQuestion := events.ParseAttributeQuery(question)
	if err != nil || badQuestion != nil {
		t.Fatalf("%q: %s: %v, %v", question, a.Body, err, badQuestion)
	}
	within := q.At >= answer.From && (answer.Until == nil || q.At < *answer.Until)
	known := !answer.AppID.IsZero() && !answer.ServiceID.IsZero()
	if (answer.Result == events.Valid) != (known && within) || (answer.Result == events.Invalid) != (answer.Reason != "") {
		t.Errorf("%q: %s", question, a.Body)
	}
}
