package events

import "strings"

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
