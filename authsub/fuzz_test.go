package authsub_test

import (
	"regexp"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api/apitest"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// FuzzVerify: whatever is asked of an Auth Provider, in either way, it gives one of §8.2's answers or a problem document that
// blames whoever asked; and both ways the same.
func FuzzVerify(f *testing.F) {
	w := newWorld(f, testenv.Database(f, testenv.SQLite))
	s := subtest.NewService(f, "bound")
	w.registry.Publish(f, w.js, s.Bind(start-10), s.Rotate(start-5, 300))
	w.current(f, s)
	door := apitest.Open(f, w.js.Conn(), w.auth.Endpoints()...)
	for _, question := range []string{
		questionText(s, s.Keys[0]), questionText(s, s.Keys[1]), questionText(s, events.GenerateSigningKey()),
		questionText(subtest.NewService(f, "nobody"), s.Keys[0]), "", "{}", "[]", `{"app_id":null}`, strings.Repeat(" ", events.MaxQuery+1),
	} {
		f.Add("POST", "/v1/verify", "Content-Type: application/json", []byte(question))
	}
	f.Add("GET", "/v1/verify", "", []byte(nil))
	f.Add("POST", "/v1/verify/", "Content-Type: text/plain", []byte("{}"))
	f.Fuzz(func(t *testing.T, method, target, header string, body []byte) {
		door.BothWays(t, "/v1/verify", method, target, header, body, checkAnswer, timeless)
	})
}

// timeless is an answer without as_of, which goes on from one to the next.
func timeless(a apitest.Answer) string {
	return regexp.MustCompile(`"as_of":\d+`).ReplaceAllString(string(a.Body), "")
}

func checkAnswer(t *testing.T, question []byte, a apitest.Answer) {
	t.Helper()
	answer, err := events.ParseVerifyAnswer(a.Body)
	q, badQuestion := events.ParseVerifyQuery(question)
	if err != nil || badQuestion != nil {
		t.Fatalf("%q: %s: %v, %v", question, a.Body, err, badQuestion)
	}
	if answer.Result == events.Accepted && !answer.PublicKey.Verify(q.Message, q.Signature) {
		t.Errorf("%q: accepted, and %s has not signed it", question, answer.PublicKey)
	}
}
