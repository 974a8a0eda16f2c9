package events_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
)

func TestParseVerifyQuery(t *testing.T) {
	t.Parallel()
	query := func(message, more string) string {
		return fmt.Sprintf(`{"app_id":"%s","service_id":"cms-article-77","message":"%s","signature":"%s"%s}`, appText, message, someSignature, more)
	}
	room := events.MaxQuery - len(query("", ""))
	for text, want := range map[string]string{
		query("", ""): "", query("AA", ""): "\x00", query("aGVsbG8", ""): "hello", " " + query("_-8", "") + "\n": "\xff\xef",
		query(strings.Repeat("A", room/4*4), ""): strings.Repeat("\x00", room/4*3),
	} {
		q, err := events.ParseVerifyQuery([]byte(text))
		if err != nil || string(q.Message) != want || q.Target != someTarget() || q.Signature.String() != someSignature {
			t.Errorf("%.200s: %v, %v", text, q, err)
		}
	}
	for text, want := range map[string]events.Reason{
		``: events.MalformedMessage, `[]`: events.MalformedMessage, `{}x`: events.MalformedMessage, `{"a":1,"\u0061":1}`: events.MalformedMessage,
		query("", ``) + strings.Repeat(" ", room+1): events.MalformedMessage,
		query("", `,"x":`+nested(8)):                events.MalformedMessage,

		`{}`: events.InvalidField, query("", `,"at":1`): events.InvalidField, query("", `,"at":1e400`): events.InvalidField,
		query("A", ""): events.InvalidField, query("AB", ""): events.InvalidField, query("AA==", ""): events.InvalidField,
		query(`AA\n`, ""): events.InvalidField, query("+/8", ""): events.InvalidField,
		strings.Replace(query("", ""), `"message":""`, `"message":null`, 1): events.InvalidField,
		strings.Replace(query("", ""), someSignature, "", 1):                events.InvalidField,
		strings.Replace(query("", ""), appText, "a", 1):                     events.InvalidField,
		strings.Replace(query("", ""), "cms-", "cms.", 1):                   events.InvalidField,
	} {
		if q, err := events.ParseVerifyQuery([]byte(text)); reasonOf(err) != want {
			t.Errorf("%.200s: %v, %v; want %s", text, q, err, want)
		}
	}
}

// TestEncodeVerifyQuery: what is asked is what is read, and what nobody would read is not asked.
func TestEncodeVerifyQuery(t *testing.T) {
	t.Parallel()
	for _, message := range []string{"", "\xff\xef", "hello", strings.Repeat("x", 48_000)} {
		want := events.VerifyQuery{Target: someTarget(), Message: []byte(message), Signature: testKey(1).Sign([]byte(message))}
		b, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := events.ParseVerifyQuery(b)
		if err != nil || got.Target != want.Target || string(got.Message) != message || got.Signature != want.Signature {
			t.Errorf("%.200s: %+v, %v", b, got, err)
		}
	}
	signature := testKey(1).Sign(nil)
	for q, want := range map[*events.VerifyQuery]events.Reason{
		{Target: someTarget(), Message: make([]byte, 49_152), Signature: signature}: events.MalformedMessage, // beyond 64 KiB
		{Signature: signature}: events.InvalidField,
	} {
		if b, err := q.Encode(); reasonOf(err) != want {
			t.Errorf("%.200s: %v, want %s", b, err, want)
		}
	}
}

func TestParseVerifyAnswer(t *testing.T) {
	t.Parallel()
	key := `"public_key":"` + testKey(1).Public().String() + `"`
	for text, want := range map[string]events.VerifyAnswer{
		`{"result":"accepted","key":"current",` + key + `,"sequence":3,"as_of":5}`:         {Key: events.KeyCurrent, Sequence: 3, AsOf: 5},
		`{"result":"accepted","key":"grace",` + key + `,"expires":9,"as_of":5,"later":{}}`: {Key: events.KeyGrace, Expires: 9, AsOf: 5},
		`{"result":"refused","reason":"unknown_service","as_of":0}`:                        {Reason: "unknown_service"},
	} {
		want.Result = events.Refused
		if want.Reason == "" {
			want.Result, want.PublicKey = events.Accepted, testKey(1).Public()
		}
		if got, err := events.ParseVerifyAnswer([]byte(text)); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]events.Reason{
		``: events.MalformedMessage, `[]`: events.MalformedMessage, `{"result":true}`: events.MalformedMessage,
		`{"result":"accepted","result":"refused"}`: events.MalformedMessage,

		`{}`: events.InvalidField, `{"result":"yes"}`: events.InvalidField, `{"result":"refused"}`: events.InvalidField,
		`{"result":"accepted","key":"current"}`:                          events.InvalidField,
		`{"result":"accepted",` + key + `}`:                              events.InvalidField,
		`{"result":"accepted","key":"grace",` + key + `}`:                events.InvalidField,
		`{"result":"accepted","key":"current","expires":9,` + key + `}`:  events.InvalidField,
		`{"result":"accepted","key":"current","reason":"x",` + key + `}`: events.InvalidField,
		`{"result":"refused","reason":"x","key":"current"}`:              events.InvalidField,
		`{"result":"refused","reason":"x",` + key + `}`:                  events.InvalidField,
		`{"result":"refused","reason":"x","expires":9}`:                  events.InvalidField,
	} {
		if got, err := events.ParseVerifyAnswer([]byte(text)); reasonOf(err) != want {
			t.Errorf("%s: %+v, %v; want %s", text, got, err, want)
		}
	}
}

func TestParseAttributeQuery(t *testing.T) {
	t.Parallel()
	key := testKey(1).Public()
	query := func(key, at string) string { return `{"public_key":"` + key + `","at":` + at + `}` }
	for _, at := range []int64{0, events.MaxSafeInteger} {
		q, err := events.ParseAttributeQuery([]byte(query(key.String(), strconv.FormatInt(at, 10))))
		if err != nil || q.PublicKey != key || q.At != at {
			t.Errorf("at %d: %v, %v", at, q, err)
		}
	}
	for text, want := range map[string]events.Reason{
		query(key.String(), "1") + "{}":                              events.MalformedMessage,
		query(key.String(), "1") + strings.Repeat(" ", 64<<10):       events.MalformedMessage,
		query(key.String(), "-1"):                                    events.InvalidField,
		query(key.String(), "1.0"):                                   events.InvalidField,
		query(key.String(), "9007199254740992"):                      events.InvalidField,
		query(key.String()+"=", "1"):                                 events.InvalidField,
		query("", "1"):                                               events.InvalidField,
		strings.Replace(query(key.String(), "1"), `"at"`, `"At"`, 1): events.InvalidField,
		`{"public_key":"` + key.String() + `"}`:                      events.InvalidField,
	} {
		if q, err := events.ParseAttributeQuery([]byte(text)); reasonOf(err) != want {
			t.Errorf("%.200s: %v, %v; want %s", text, q, err, want)
		}
	}
}
