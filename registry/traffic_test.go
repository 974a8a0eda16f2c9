package registry

import (
	"bytes"
	"fmt"
	"strings"

	"pgregory.net/rapid"

	"omiappreg.org/keyrotation/events"
)

// sent is one message on its way, as the stream would hold it.
type sent struct {
	subject string
	payload []byte
}

func (r request) sent() sent { return sent{r.draft.Subject(), r.payload} }

// sender draws what one service is sent: by itself, by its developer, by replays and by attackers.
type sender struct {
	*developer
	old, oldest, shared events.SigningKey
	sent                *sent // its last request that was not odd
}

// traffic draws requests for a few services of one app, good and bad, with every reason of §6 among them.
func traffic(t *rapid.T, d *developer) []sent {
	shared := events.GenerateSigningKey()
	names, services := []string{"s-0", "s-1", "s-2"}, map[string]*sender{}
	for _, name := range names {
		services[name] = &sender{developer: d.another(name), shared: shared}
	}
	var log []sent
	for range rapid.IntRange(1, 60).Draw(t, "requests") {
		s := services[rapid.SampledFrom(names).Draw(t, "service")]
		switch what := rapid.SampledFrom(kinds()).Draw(t, "what"); {
		case what == "replay" && len(log) > 0:
			log = append(log, log[rapid.IntRange(0, len(log)-1).Draw(t, "replayed")])
		case what == "other data" && s.sent != nil && !s.current.IsZero():
			log = append(log, s.reuseNonce(*s.sent))
		case what == "rotation elsewhere" && len(log) > 0: // also on the subject of another kind
			log = append(log, sent{s.subject(rapid.SampledFrom(subjects()).Draw(t, "subject")), log[len(log)-1].payload})
		default:
			one := s.draw(what)
			log = append(log, one)
			if what == "rotate" || what == "bind" {
				s.sent = &one
			}
		}
	}
	return log
}

func subjects() []string {
	return []string{events.RotationSubject, events.BindingSubject, events.RevocationSubject}
}

func (s *sender) subject(kind string) string { return kind + s.target.String() }

// kinds are what traffic draws from: half of them stand.
func kinds() []string {
	list := []string{
		"bind", "bind with details", "reset", "reset with details", "revoke", "revoke with a receipt", "replay", "forge",
		"old key", "oldest key", "shared key", "other data", "rotation elsewhere", "garbage", "version", "field", "stale",
		"future", "unknown app", "foreign proof", "no proof", "weak key", "master key", "grace", "long grace",
		"emergency", "emergency", "elsewhere",
		"weak key", "shared key",
	}
	for range 5 {
		list = append(list, "rotate", "rotate", "other data", "rotation elsewhere")
	}
	return list
}

// draw makes the next request. Of a service that isn't bound, most are bindings.
func (s *sender) draw(what string) sent {
	if s.current.IsZero() {
		switch what {
		case "forge", "unknown app", "garbage", "revoke", "reset", "stale":
		case "bind with details":
			return s.detailed(events.Binding)
		default:
			return s.bind().sent()
		}
	}
	switch what {
	case "rotate", "replay", "other data", "rotation elsewhere":
		if s.oldest.IsZero() {
			s.oldest = s.current
		}
		s.old = s.current
		return s.rotate().sent()
	case "bind": // of a service that is bound
		return s.sign(events.Binding, events.GenerateSigningKey(), s.master).sent()
	case "bind with details", "reset with details":
		return s.detailed(events.Reset)
	case "emergency":
		return s.emergency().sent()
	case "reset":
		return s.reset().sent()
	case "revoke":
		return s.revoke().sent()
	case "revoke with a receipt":
		defer func() { s.current = events.SigningKey{} }()
		draft := s.draft(events.Revocation, events.SigningKey{})
		draft.ProviderReceipt = []byte(`{"by": "müller\u0000\n", "at": 1705412610, "list": [null, true, 1.5]}`)
		return s.signed(draft, s.master)
	case "old key", "oldest key": // of the newest, and of those that are looked at as long as it costs little
		key := map[string]events.SigningKey{"old key": s.old, "oldest key": s.oldest}[what]
		if key.IsZero() {
			key = s.current
		}
		return s.sign(events.Rotation, events.GenerateSigningKey(), key).sent()
	case "shared key": // several services claim one key: the first wins, the others stay as they are
		return s.sign(events.Rotation, s.shared, s.current).sent()
	case "master key":
		return s.sign(events.Rotation, s.master, s.current).sent()
	case "forge":
		return s.sign(events.Rotation, events.GenerateSigningKey(), events.GenerateSigningKey()).sent()
	case "unknown app":
		other := *s.developer
		other.target.App = mustApp(s.t, "org.omiappreg.nobody")
		return other.sign(events.Binding, events.GenerateSigningKey(), s.master).sent()
	default:
		return s.odd(what)
	}
}

// odd makes a rotation with something wrong in its form, or in what it asks for.
func (s *sender) odd(what string) sent {
	draft := s.draft(events.Rotation, events.GenerateSigningKey())
	change := func(from, to string) sent {
		one := s.signed(draft, s.current)
		return sent{one.subject, bytes.Replace(one.payload, []byte(from), []byte(to), 1)}
	}
	seconds := func(n int64) *int64 { return &n }
	switch what {
	case "garbage":
		return sent{draft.Subject(), []byte("{")}
	case "version":
		return change(`"version":"1.0"`, `"version":"2.0"`)
	case "field":
		return change(`"context"`, `"contexts"`)
	case "stale", "future":
		draft.Timestamp += map[string]int64{"stale": -301, "future": 301}[what]
	case "grace":
		draft.GracePeriod = seconds(7)
		s.old, s.current = s.current, draft.NewKey
		return s.signed(draft, s.old)
	case "elsewhere":
		draft.Origin = "staging.example"
	case "long grace":
		draft.GracePeriod = seconds(301)
	case "foreign proof":
		draft.NewKey = events.GenerateSigningKey()
		other := events.GenerateSigningKey()
		return s.bare(draft, fmt.Sprintf(`,"new_key_signature":"%s"`, other.Sign([]byte("other bytes"))), draft.NewKey.Public().String())
	case "no proof": // stands, unless the policy asks for one
		return s.bare(draft, "", draft.NewKey.Public().String())
	case "weak key":
		return s.bare(draft, "", "ed25519:AQ"+strings.Repeat("A", 41))
	}
	if s.current.IsZero() {
		return s.signed(draft, s.master)
	}
	return s.signed(draft, s.current)
}

func (s *sender) signed(draft events.Draft, by events.SigningKey) sent {
	s.t.Helper()
	payload, err := draft.Sign(by)
	if err != nil {
		s.t.Fatal(err)
	}
	return sent{draft.Subject(), payload}
}

// detailed is a binding or a reset that says what the service is.
func (s *sender) detailed(kind events.RequestKind) sent {
	draft := s.draft(kind, events.GenerateSigningKey())
	draft.ServiceType, draft.EndpointURL = "cms-article ü", "https://i77.article.cms.io/api/v1?q=ü%20"
	s.current = draft.NewKey
	return s.signed(draft, s.master)
}

// bare signs a rotation that package events would not write.
func (s *sender) bare(draft events.Draft, proof, newKey string) sent {
	s.t.Helper()
	data := fmt.Sprintf(`{"new_public_key":%q,"rotation_timestamp":%d,"nonce":%q,"context":"key_rotation"}`, newKey, draft.Timestamp, draft.Nonce)
	canonical, err := events.Canonical([]byte(data))
	if err != nil {
		s.t.Fatal(err)
	}
	return sent{draft.Subject(), fmt.Appendf(nil, `{"version":"1.0","data":%s,"signature":"%s"%s}`, data, s.current.Sign(canonical), proof)}
}

// reuseNonce signs another rotation with the nonce of an earlier request.
func (s *sender) reuseNonce(earlier sent) sent {
	r, err := events.ParseRequest(earlier.subject, earlier.payload)
	if err != nil {
		return earlier
	}
	draft := s.draft(events.Rotation, events.GenerateSigningKey())
	draft.Nonce = r.Nonce
	return s.signed(draft, s.current)
}
