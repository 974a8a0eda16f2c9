package events

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// Metadata by which a subscriber's durable tells the registry about the subscriber (§8.1). Values
// are words, separated by blanks.
const (
	// TrustMetadata names the registry keys that the subscriber trusts, as origin/key_id. A key
	// that has an end is followed by it.
	TrustMetadata = "omi-trust"
	// FailedMetadata names the places in the stream of events that the subscriber acknowledged and
	// could not apply, or is [FailedMany].
	FailedMetadata = "omi-failed"
	// FailedMany means that there are too many such places to name them.
	FailedMany = "*"
)

// TrustedBy returns the word by which a subscriber says that it trusts this key of the registry at
// origin.
func TrustedBy(origin string, key PublicKey) string { return origin + "/" + key.KeyID() }

// Announcement returns the words of [TrustMetadata] for this trust, sorted.
func (t Trust) Announcement() []string {
	words := make([]string, len(t.keys))
	for i, k := range t.keys {
		words[i] = TrustedBy(t.origin, k.key) + k.end.suffix()
	}
	slices.Sort(words)
	return slices.Compact(words)
}

// Trusts reports whether a subscriber whose [TrustMetadata] has these words believes a message that
// this key signed and that JetStream stored at this time and place of the stream. The zero time
// means now.
func Trusts(words []string, origin string, signer PublicKey, stored time.Time, place uint64) bool {
	return slices.ContainsFunc(words, func(word string) bool {
		name, text, ends := strings.Cut(word, "@")
		if name != TrustedBy(origin, signer) || !ends {
			return name == TrustedBy(origin, signer)
		}
		end, err := parseEnd(text)
		return err == nil && end.before(moment{stored, place})
	})
}

// MayHaveApplied reports whether a durable with this metadata, once it has acknowledged the event
// that was stored at this time and place of the stream, can have applied it. It can if it trusts
// the key that signed the event and did not fail on it, or if it announces nothing.
func MayHaveApplied(metadata map[string]string, origin string, signer PublicKey, stored time.Time, place uint64) bool {
	if trusted, announced := metadata[TrustMetadata]; announced && !Trusts(strings.Fields(trusted), origin, signer, stored, place) {
		return false
	}
	failed := strings.Fields(metadata[FailedMetadata])
	return !slices.Contains(failed, FailedMany) && !slices.Contains(failed, strconv.FormatUint(place, 10))
}

// OfUnknownKey examines a message that [Trust.Invalidation] refuses as [UntrustedSignature]. It
// reports whether the message is in all other respects an event of this registry about the service
// in its subject, and names no trusted key. That is how events look if the registry's key was
// changed and this trust wasn't. It returns the key_id that the message names, if any. Anyone who
// may publish can make such a message.
func (t Trust) OfUnknownKey(subject string, payload []byte) (keyID string, looks bool) {
	m, err := readMessage(payload)
	if err != nil || t.hinted(m) >= 0 {
		return "", false
	}
	if _, err := t.readInvalidation(subject, m); err != nil {
		return "", false
	}
	return string(m.envelope.peek("key_id")), true
}

// NoticeSubject is where the registry tells people what has happened to an app. The id of the app
// follows it.
const NoticeSubject = "omi.v1.notices."

// NoticeKind is the subject matter of a [Notice] (§7.4).
type NoticeKind string

// MasterKeyReplaced means that an app has a new Master Key from now on.
const MasterKeyReplaced NoticeKind = "MASTER_KEY_REPLACED"

// Notice tells people about a change to an app (§7.4). It is not stored, and no program depends on
// it.
type Notice struct {
	Origin    string
	App       AppID
	Event     NoticeKind
	OldKey    PublicKey
	NewKey    PublicKey
	Timestamp int64 // of the change, seconds since the Unix epoch
}

// Subject returns the subject on which the notice is published.
func (n *Notice) Subject() string { return NoticeSubject + n.App.s }

// Sign returns the message to publish. Every replica of a registry makes the same message.
func (n *Notice) Sign(key SigningKey) []byte {
	s := newStatement(len(n.Origin) + len(n.App.s))
	s.str("origin", n.Origin)
	s.plain("app_id", n.App.s)
	s.str("event", string(n.Event))
	s.key("old_public_key", n.OldKey)
	s.key("new_public_key", n.NewKey)
	s.integer("timestamp", n.Timestamp)
	return s.sign(key)
}

// Notice reads a notice of the registry, or returns a [*Refusal] that says why it can't be
// believed.
func (t Trust) Notice(subject string, payload []byte) (Notice, error) {
	m, err := t.open(payload)
	if err == nil {
		err = t.checkOrigin(m)
	}
	if err != nil {
		return Notice{}, err
	}
	f := &m.data
	event, _ := f.text("event", true)
	n := Notice{
		Origin: t.origin, App: f.appID("app_id", true), Event: NoticeKind(oneOf(event, string(MasterKeyReplaced))),
		OldKey: f.publicKey("old_public_key", true), NewKey: f.publicKey("new_public_key", true), Timestamp: f.time("timestamp"),
	}
	if err := f.done(); err != nil {
		return Notice{}, err
	}
	if n.Event == "" {
		return Notice{}, refuse(UnknownEvent, "The notice is of a later version of the protocol.")
	}
	if app, ok := strings.CutPrefix(subject, NoticeSubject); !ok || app != n.App.s {
		return Notice{}, refuse(TargetMismatch, "The subject names another app than the signed data.")
	}
	return n, nil
}
