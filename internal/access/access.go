// Package access says what each party may do at the broker, as accounts of nats-server's
// configuration that an operator adds one by one. deploy/nats has the configuration to which they
// are added, and explains the reasons.
package access

import (
	"fmt"
	"slices"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/streams"
)

// The accounts of deploy/nats/nats-server.conf from which others import.
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

// The limits of one account. Without them, a party could take the broker's memory from all others.
// Answers to a party don't count, however large they are.
const (
	connections   = 256
	subscriptions = 1000     // of a connection
	ofDeveloper   = 16_384   // the same; a developer may wait for the answers of as many services
	payload       = 72 << 10 // a question to Auth is 64 KiB at most (docs/protocol.md §8)
)

// Account is one party's account at the broker, with one user. It can reach only the
// subjects that it may publish to, because its account imports nothing else.
type Account struct {
	Name string
	// NKey is the user's public key, U….
	NKey string
	// Comment says what the account is for.
	Comment string

	imports []imported
	hears   []string // the subjects that it may subscribe to in addition to its answers

	subscriptions int // at most
}

// imported is a subject of another account.
type imported struct{ account, subject string }

// Service returns the account of one service. It asks for its own rotation, hears and reads its own
// receipts, hears of its own changes, looks services up, and asks Auth.
func Service(t events.Target, nkey string) Account {
	return Account{
		Name: t.String(), NKey: nkey, Comment: "The service " + t.String(), subscriptions: subscriptions,
		hears: []string{events.AnswerSubject + t.String(), events.ChangeSubject + t.String()},
		imports: slices.Concat(
			[]imported{{core, events.RotationSubject + t.String()}}, receipts(t.String()), questions()),
	}
}

// Developer returns the account of the holder of an app's Master Key: binding, reset and revocation
// of the app's services. It may also send their rotations, for which the developer would need their
// keys.
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

// Receiver returns the account of a receiver that checks signatures in its own process
// (client.Verifier). It reads the events by consumers with names of its own. Permissions match
// whole names only, and the names of Auth's durables are not known beforehand. So a receiver gets a
// fixed list of names, one for each of its processes, and can't touch any other consumer.
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

// receipts returns the subjects for finding a receipt that was not heard, of a target or of a
// pattern of them. The target is in the subject, so a reader can be limited to its own.
func receipts(of string) []imported {
	return []imported{{core, lastReceipt + of}, {core, events.LookupReceiptSubject + of}}
}

// questions returns the questions that anyone may ask about any service.
func questions() []imported {
	return []imported{
		{core, events.LookupServiceSubject + ">"}, {core, events.LookupHistorySubject + ">"}, {core, events.LookupRegistrySubject},
		{auth, events.AuthVerifySubject},
	}
}

// String returns the account as a part of nats-server's map of accounts.
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
	// Without this import the server gives the account a JetStream API of its own, which answers
	// first and says that it has no JetStream. The user may not publish there.
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
