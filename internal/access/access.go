// Package access says what each party may do at the broker, as accounts of nats-server's configuration: those that an
// operator adds one by one. deploy/nats has the configuration that they are added to, and says why it is so.
package access

import (
	"fmt"
	"slices"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/streams"
)

// The accounts of deploy/nats/nats-server.conf that others import from.
const (
	core = "OMI"
	auth = "AUTHSUB"
)

const (
	createConsumer = "$JS.API.CONSUMER.CREATE."
	consumerInfo   = "$JS.API.CONSUMER.INFO."
	deleteConsumer = "$JS.API.CONSUMER.DELETE."
	nextMessage    = "$JS.API.CONSUMER.MSG.NEXT."
	lastReceipt    = "$JS.API.DIRECT.GET." + streams.Receipts + "." + events.ReceiptSubject
	answers        = "_INBOX.>"
)

// What one account may have at a time. A party with more of it would take the broker's memory from
// all others. Answers to a party don't count, however large they are.
const (
	connections   = 256
	subscriptions = 1000     // of a connection
	ofDeveloper   = 16_384   // the same, since a developer may wait for the answers of as many services
	payload       = 72 << 10 // a question to Auth is 64 KiB at most (docs/protocol.md §8)
)

// Account is one party's account at the broker, with one user. What it may publish is all that it may reach, since its
// account imports nothing else.
type Account struct {
	Name string
	// NKey is the user's public key, U….
	NKey string
	// What it is for, in a comment.
	Comment string

	imports []imported
	hears   []string // the subjects that it may listen to besides its answers

	subscriptions int // at most
}

// imported is a subject of another account.
type imported struct{ account, subject string }

// Service is the account of one service: it asks for its own rotation, hears and reads its own receipts, hears that it was changed,
// looks others up, and asks Auth.
func Service(t events.Target, nkey string) Account {
	return Account{
		Name: t.String(), NKey: nkey, Comment: "The service " + t.String(), subscriptions: subscriptions,
		hears: []string{events.AnswerSubject + t.String(), events.ChangeSubject + t.String()},
		imports: slices.Concat(
			[]imported{{core, events.RotationSubject + t.String()}}, receipts(t.String()), questions()),
	}
}

// Developer is the account of who holds an app's Master Key: binding, reset and revocation of the app's services, and their
// rotation, for which the developer would need their keys.
func Developer(app events.AppID, nkey string) Account {
	every := app.String() + ".*"
	return Account{
		Name: "developer:" + app.String(), NKey: nkey, Comment: "The developer of " + app.String(), subscriptions: ofDeveloper,
		hears: []string{events.AnswerSubject + every},
		imports: slices.Concat(
			[]imported{
				{core, events.RotationSubject + every}, {core, events.BindingSubject + every}, {core, events.RevocationSubject + every},
			}, receipts(every), questions()),
	}
}

// Receiver is the account of a receiver that checks signatures in its own process (client.Verifier): it reads the events by
// consumers whose names are its own. Permissions match whole names only, and Auth's durables have names that nobody knows
// beforehand: so a receiver has so many names, one for each of its processes, and can't touch any other consumer.
func Receiver(name, nkey string, consumers int) Account {
	const stream = streams.Invalidations + "."
	a := Account{Name: "receiver:" + name, NKey: nkey, Comment: "The receiver " + name + ", which reads the events", subscriptions: subscriptions}
	for i := range consumers {
		own := stream + streams.ReceiverConsumer(name, i+1)
		for _, what := range []string{createConsumer, consumerInfo, nextMessage, deleteConsumer} {
			a.imports = append(a.imports, imported{core, what + own})
		}
	}
	a.imports = append(a.imports, questions()...)
	return a
}

// receipts is what it takes to find a receipt that was not heard, of a target or of a pattern of them. That the target is in the
// subject is what holds a reader to its own.
func receipts(of string) []imported {
	return []imported{{core, lastReceipt + of}, {core, events.LookupReceiptSubject + of}}
}

// questions are those that anybody may ask about anybody.
func questions() []imported {
	return []imported{
		{core, events.LookupServiceSubject + ">"}, {core, events.LookupHistorySubject + ">"}, {core, events.LookupRegistrySubject},
		{auth, events.AuthVerifySubject},
	}
}

// String is the account as a part of nats-server's map of accounts.
func (a Account) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n%q {\n", a.Comment, a.Name)
	fmt.Fprintf(&b, "  limits { max_connections: %d, max_subscriptions: %d, max_payload: %d }\n", connections, a.subscriptions, payload)
	fmt.Fprintf(&b, "  users: [{\n    nkey: %s\n    permissions {\n", a.NKey)
	publish := make([]string, len(a.imports))
	for i, in := range a.imports {
		publish[i] = in.subject
	}
	b.WriteString("      publish {\n")
	list(&b, "        allow", publish)
	fmt.Fprintf(&b, "      }\n      subscribe: [%q", answers)
	for _, subject := range a.hears {
		fmt.Fprintf(&b, ", %q", subject)
	}
	b.WriteString("]\n    }\n  }]\n  imports: [\n")
	// Without this import the server gives the account a JetStream API of its own, which answers first: it has no JetStream.
	// The user may not publish there.
	for _, in := range append([]imported{{core, "$JS.API.INFO"}}, a.imports...) {
		fmt.Fprintf(&b, "    { service: { account: %s, subject: %q } }\n", in.account, in.subject)
	}
	for _, subject := range a.hears {
		fmt.Fprintf(&b, "    { stream: { account: %s, subject: %q } }\n", core, subject)
	}
	b.WriteString("  ]\n}\n")
	return b.String()
}

func list(b *strings.Builder, name string, subjects []string) {
	fmt.Fprintf(b, "%s: [\n", name)
	for _, s := range subjects {
		fmt.Fprintf(b, "          %q\n", s)
	}
	b.WriteString("        ]\n")
}
