package access_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/room"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/streams"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// attack is one thing that a user must not be able to do.
type attack struct {
	name string
	user string
	do   func(a *attacker)
	// harmless says why the attack does no harm at a broker without permissions either.
	harmless string
}

// hearing reports whether the attack only listens to others, and does nothing itself.
func (a attack) hearing() bool { return strings.HasPrefix(a.name, "hears") }

// say is an attack by one message.
func say(user, subject, reply, body string) attack {
	name := "publishes to " + subject
	if reply != "" {
		name += " and wants the answer on " + reply
	}
	return attack{name: name, user: user, do: func(a *attacker) { a.say(subject, reply, body) }}
}

// ask is an attack by one request.
func ask(user, subject, body string) attack {
	return attack{name: "asks " + subject, user: user, do: func(a *attacker) { a.peek(a.ask(subject, body)) }}
}

func hear(user, subject string) attack {
	return attack{name: "hears " + subject, user: user, do: func(a *attacker) { a.hear(subject) }}
}

func read(user, how, create, config string) attack {
	return attack{name: "reads receipts by " + how, user: user, do: func(a *attacker) { a.read(create, config) }}
}

// each repeats attacks for several users.
func each(users []string, attacks func(user string) []attack) (all []attack) {
	for _, user := range users {
		all = append(all, attacks(user)...)
	}
	return all
}

const (
	rotation    = events.RotationSubject
	binding     = events.BindingSubject
	revocation  = events.RevocationSubject
	event       = events.InvalidationSubject
	receipt     = events.ReceiptSubject
	jsAPI       = "$JS.API."
	ownReceipts = "CONSUMER.CREATE.OMI_RECEIPTS.mine.omi.v1.receipts." + cms
	ownConsumer = `{"stream_name": "OMI_RECEIPTS", "config": {"name": "mine", "ack_policy": "none", "filter_subject": "omi.v1.receipts.` + cms + `"}}`
)

// attacks is the list of threats, one by one.
func attacks() []attack {
	everybody := []string{"cms", "developer", "receiver", "AUTHSUB", "BILLINGSUB"}
	var all []attack
	all = append(all, each(append(everybody, "OPERATOR"), speakForOthers)...)
	all = append(all, each(everybody, meddle)...)
	all = append(all, each([]string{"cms", "developer", "receiver", "AUTHSUB", "BILLINGSUB"}, listen)...)
	all = append(all, readOthers()...)
	all = append(all, answersElsewhere()...)
	all = append(all, touchDurables()...)
	all = append(all, requestsOfOthers()...)
	all = append(all, fillStreams()...)
	return all
}

// speakForOthers: only the registry publishes events and receipts, and no user asks for another's
// change.
func speakForOthers(user string) []attack {
	return []attack{
		say(user, event+blog, "", "{}"), say(user, event+cms, "", "{}"), say(user, receipt+blog, "", "{}"), say(user, receipt+cms, "", "{}"),
		say(user, rotation+till, "", "{}"), say(user, binding+till, "", "{}"), say(user, revocation+till, "", "{}"),
	}
}

func requestsOfOthers() []attack {
	return []attack{
		say("cms", rotation+blog, "", "{}"), say("cms", binding+cms, "", "{}"), say("cms", revocation+cms, "", "{}"),
		say("cms", rotation+cms+".more", "", "{}"), say("developer", binding+"org.example.shop.more.cms", "", "{}"),
		say("developer", binding+"org.example.shop", "", "{}"),
		say("receiver", rotation+blog, "", "{}"), say("OPERATOR", rotation+blog, "", "{}"), say("OPERATOR", revocation+cms, "", "{}"),
	}
}

// fillStreams: the messages that one account may have waiting leave room for others.
func fillStreams() []attack {
	return []attack{{
		name: "fills the stream of requests", user: "cms", harmless: "its subject has a bound, and the stream has one",
		do: func(a *attacker) {
			js, large := a.jetStream(a.nc), make([]byte, 7000)
			for range 2 * streams.RequestsWaiting {
				if _, err := js.Publish(a.t.Context(), rotation+cms, large); err != nil && !room.Lacks(err) {
					a.t.Fatal(err)
				}
			}
			stream, err := a.js.Stream(a.t.Context(), streams.Requests)
			a.must(err)
			if held := stream.CachedInfo().State.Msgs; held > streams.RequestsWaiting+10 {
				a.leaked = fmt.Sprintf("room for %d requests", held)
			}
		},
	}}
}

// meddle: streams and durables are the registry's and the operator's.
func meddle(user string) []attack {
	const requests, events = "OMI_REQUESTS", "OMI_INVALIDATIONS"
	registryConsumer := `{"stream_name": "OMI_REQUESTS", "config": {"durable_name": "registry", "name": "registry", "ack_policy": "explicit", ` +
		`"ack_wait": 1000000000, "max_deliver": 1, "max_ack_pending": 1}}`
	return []attack{
		ask(user, jsAPI+"STREAM.DELETE."+requests, ""), ask(user, jsAPI+"STREAM.DELETE."+events, ""),
		ask(user, jsAPI+"STREAM.PURGE."+requests, ""), ask(user, jsAPI+"STREAM.PURGE.OMI_RECEIPTS", ""),
		ask(user, jsAPI+"STREAM.MSG.DELETE."+requests, `{"seq": 1}`),
		ask(user, jsAPI+"STREAM.UPDATE."+requests, `{"name": "OMI_REQUESTS", "subjects": ["omi.v1.requests.>"], "retention": "workqueue", "max_msgs": 1}`),
		ask(user, jsAPI+"CONSUMER.DELETE.OMI_REQUESTS.registry", ""),
		ask(user, jsAPI+"CONSUMER.PAUSE.OMI_REQUESTS.registry", `{"pause_until": "2100-01-01T00:00:00Z"}`),
		ask(user, jsAPI+"CONSUMER.CREATE.OMI_REQUESTS.registry", registryConsumer),
		ask(user, jsAPI+"CONSUMER.DURABLE.CREATE.OMI_REQUESTS.registry", registryConsumer),
		ask(user, jsAPI+"CONSUMER.MSG.NEXT.OMI_REQUESTS.registry", `{"no_wait": true}`),
		ask(user, jsAPI+"STREAM.MSG.GET."+requests, `{"last_by_subj": "`+rotation+blog+`"}`),
		say(user, "$JS.ACK.OMI_REQUESTS.registry.1.1.1.1.0", "", ""),
		say(user, "$JS.ACK.OMI_REQUESTS.registry.1.1.1.1.0", "", "+TERM"),
	}
}

// listen: messages between other parties, and the answers that they get.
func listen(user string) []attack {
	all := []attack{
		hear(user, ">"), hear(user, "omi.>"), hear(user, "_INBOX.>"), hear(user, rotation+">"), hear(user, receipt+blog), hear(user, event+">"), hear(user, events.ChangeSubject+blog), hear(user, events.ChangeSubject+"*.*.*.*"),
		hear(user, events.AnswerSubject+">"), hear(user, events.AnswerSubject+"*.*.*.*"),
		hear(user, "omi.v1.lookup.>"), hear(user, events.LookupRegistrySubject), hear(user, "$JS.>"), hear(user, "$JS.ACK.>"),
	}
	if user != "AUTHSUB" {
		all = append(all, hear(user, events.AuthVerifySubject))
	}
	if user != "developer" { // the service is the developer's
		all = append(all, hear(user, events.AnswerSubject+blog))
	}
	return all
}

// readOthers: the receipts of others.
func readOthers() []attack {
	of := func(service string) string { return `"filter_subject": "omi.v1.receipts.` + service + `"` }
	both := `"filter_subjects": ["omi.v1.receipts.` + cms + `", "omi.v1.receipts.` + blog + `"]`
	all := []attack{
		read("cms", "another's filter", "OMI_RECEIPTS.x.omi.v1.receipts."+blog, `"name": "x", `+of(blog)),
		read("cms", "a wide filter", "OMI_RECEIPTS.x.omi.v1.receipts.>", `"name": "x", `+of(">")),
		read("cms", "no filter", "OMI_RECEIPTS.x", `"name": "x"`),
		read("cms", "the legacy request", "OMI_RECEIPTS", of(blog)),
		read("cms", "two filters and the legacy request", "OMI_RECEIPTS", both),
		ask("cms", jsAPI+"STREAM.MSG.GET.OMI_RECEIPTS", `{"last_by_subj": "omi.v1.receipts.`+blog+`"}`),
		ask("cms", jsAPI+"STREAM.MSG.GET.OMI_RECEIPTS", `{"seq": 5}`),
		ask("cms", jsAPI+"DIRECT.GET.OMI_RECEIPTS.omi.v1.receipts."+blog, ""),
		ask("cms", jsAPI+"DIRECT.GET.OMI_RECEIPTS", `{"seq": 5}`),
		ask("cms", jsAPI+"DIRECT.GET.OMI_RECEIPTS."+receipt+">", ""), ask("cms", jsAPI+"DIRECT.GET.OMI_RECEIPTS."+receipt+"org.example.shop.*", ""),
		ask("cms", events.LookupReceiptSubject+blog, `{"request_nonce":"neverMind"}`),
		ask("developer", jsAPI+"DIRECT.GET.OMI_RECEIPTS."+receipt+till, ""),
		{name: "asks for the last receipt of all apps that begin as its own", user: "developer", do: func(a *attacker) {
			if answer := a.ask(jsAPI+"DIRECT.GET.OMI_RECEIPTS."+receipt+"org.example.shop.>", ""); strings.Contains(answer, deeper) {
				a.leaked = answer
			}
		}},
		ask("developer", jsAPI+"DIRECT.GET.OMI_RECEIPTS."+receipt+deeper, ""),
		ask("developer", events.LookupReceiptSubject+till, `{"request_nonce":"neverMind"}`),
		ask("receiver", jsAPI+"DIRECT.GET.OMI_RECEIPTS."+receipt+blog, ""), ask("AUTHSUB", jsAPI+"DIRECT.GET.OMI_RECEIPTS."+receipt+blog, ""),
		read("developer", "another app's filter", "OMI_RECEIPTS.x.omi.v1.receipts."+till, `"name": "x", `+of(till)),
		read("developer", "a wide filter", "OMI_RECEIPTS.x.omi.v1.receipts.>", `"name": "x", `+of(">")),
		read("receiver", "a consumer", "OMI_RECEIPTS.x.omi.v1.receipts."+blog, `"name": "x", `+of(blog)),
		read("AUTHSUB", "a consumer", "OMI_RECEIPTS.x.omi.v1.receipts."+blog, `"name": "x", `+of(blog)),
	}
	// An allowed subject, with a body that says something different: JetStream compares them.
	for how, config := range map[string]string{
		"another filter in the body": of(blog), "two filters in the body": both, "none in the body": `"description": "all"`,
	} {
		a := read("cms", how, "OMI_RECEIPTS.mine.omi.v1.receipts."+cms, `"name": "mine", `+config)
		a.harmless = "JetStream compares subject and body"
		all = append(all, a)
	}
	durable := read("cms", "another name in the body", "OMI_RECEIPTS.mine.omi.v1.receipts."+cms, `"name": "theirs", `+of(cms))
	durable.harmless = "JetStream compares subject and body"
	return append(all, durable)
}

// answersElsewhere: the broker and the registry answer on the subject that the asker names, with
// rights of their own.
func answersElsewhere() (all []attack) {
	for _, victim := range []string{rotation + blog, event + blog, receipt + blog} {
		pull := attack{name: "has its receipts delivered to " + victim, user: "cms", do: func(a *attacker) {
			a.ask(jsAPI+ownReceipts, ownConsumer)
			a.say(jsAPI+"CONSUMER.MSG.NEXT.OMI_RECEIPTS.mine", victim, `{"batch": 3, "no_wait": true}`)
			a.ask(jsAPI+ownReceipts, ownConsumer)
		}}
		push := attack{name: "has events pushed to " + victim, user: "AUTHSUB", do: func(a *attacker) { a.push(victim) }}
		if victim == event+blog {
			push.harmless = "JetStream sees that a stream would deliver to itself"
		}
		lookup := say("cms", events.LookupRegistrySubject, victim, "")
		lookup.harmless = "internal/api does not answer there"
		all = append(all, pull, push, lookup,
			say("cms", rotation+cms, victim, "{}"), // JetStream says that it is stored
			say("cms", jsAPI+ownReceipts, victim, ownConsumer), say("cms", jsAPI+"DIRECT.GET.OMI_RECEIPTS."+receipt+cms, victim, ""),
			say("AUTHSUB", jsAPI+"CONSUMER.INFO.OMI_INVALIDATIONS."+authDurable, victim, ""),
			say("receiver", jsAPI+"CONSUMER.INFO.OMI_INVALIDATIONS."+authDurable, victim, ""),
		)
	}
	return append(all, attack{name: "has events delivered to another's events", user: "AUTHSUB", do: func(a *attacker) {
		a.say(jsAPI+"CONSUMER.MSG.NEXT.OMI_INVALIDATIONS."+authDurable, rotation+blog, `{"batch": 3, "no_wait": true}`)
	}})
}

// touchDurables: each subscriber has its own, and a receiver has none.
func touchDurables() (all []attack) {
	const stream = "OMI_INVALIDATIONS"
	config := func(durable, more string) string {
		return fmt.Sprintf(`{"stream_name": %q, "config": {"durable_name": %q, "name": %[2]q, "ack_policy": "explicit", "max_deliver": 1%s}}`, stream, durable, more)
	}
	for user, durable := range map[string]string{
		"AUTHSUB": streams.BillingDurable, "BILLINGSUB": authDurable, "receiver": authDurable, "cms": authDurable, "developer": authDurable,
	} {
		filter := event + blog
		all = append(all,
			ask(user, jsAPI+"CONSUMER.DELETE."+stream+"."+durable, ""),
			ask(user, jsAPI+"CONSUMER.PAUSE."+stream+"."+durable, `{"pause_until": "2100-01-01T00:00:00Z"}`),
			ask(user, jsAPI+"CONSUMER.MSG.NEXT."+stream+"."+durable, `{"no_wait": true}`),
			ask(user, jsAPI+"CONSUMER.CREATE."+stream+"."+durable, config(durable, "")),
			ask(user, jsAPI+"CONSUMER.DURABLE.CREATE."+stream+"."+durable, config(durable, "")),
			ask(user, jsAPI+"CONSUMER.CREATE."+stream+"."+durable+"."+filter, config(durable, `, "filter_subject": "`+filter+`"`)),
			say(user, "$JS.ACK."+stream+"."+durable+".1.2.2.1.7", "", ""),
		)
	}
	for _, user := range []string{"cms", "developer", "receiver", "BILLINGSUB"} { // it could delay every change
		for _, name := range []string{"audit", "authsub-ghost", "billingsub-ghost"} {
			all = append(all, ask(user, jsAPI+"CONSUMER.CREATE."+stream+"."+name, config(name, "")),
				ask(user, jsAPI+"CONSUMER.DURABLE.CREATE."+stream+"."+name, config(name, "")))
		}
	}
	another := ask("receiver", jsAPI+"CONSUMER.CREATE."+stream+".mine", config(authDurable, ""))
	another.harmless = "JetStream compares subject and body"
	legacy := ask("receiver", jsAPI+"CONSUMER.CREATE."+stream, config(authDurable, ""))
	legacy.harmless = "JetStream makes no durable by that request"
	return append(all, another, legacy,
		ask("AUTHSUB", jsAPI+"STREAM.DELETE."+stream, ""),
		ask("REGISTRY", jsAPI+"STREAM.DELETE."+stream, ""), // not even a registry that was broken into
		ask("REGISTRY", jsAPI+"STREAM.PURGE.OMI_REQUESTS", ""),
		ask("REGISTRY", jsAPI+"CONSUMER.DELETE."+stream+"."+authDurable, ""),
	)
}

// TestForbidden tries everything at the broker of deploy/nats, where nothing of it may do harm.
func TestForbidden(t *testing.T) {
	t.Parallel()
	w, _ := securedWorld(t)
	before := w.state()
	users := map[string]*attacker{}
	for _, attack := range attacks() {
		a, ok := users[attack.user]
		if !ok {
			a = w.attacker(attack.user)
			users[attack.user] = a
		}
		a.leaked = ""
		attack.do(a)
		w.must(w.registry.Flush())
		if attack.hearing() { // others were busy meanwhile
			before = w.state()
		}
		if err := a.harm(before); err != nil {
			t.Errorf("%s %s: %v", attack.user, attack.name, err)
			before = w.state()
		}
	}
}

// TestHarm: each of these attacks does harm at a broker without permissions. An attack that does
// none would show nothing.
func TestHarm(t *testing.T) {
	t.Parallel()
	tried := map[string]bool{}
	for _, attack := range attacks() {
		if tried[attack.name] {
			continue // without permissions, users are all the same
		}
		tried[attack.name] = true
		t.Run(attack.name, func(t *testing.T) {
			t.Parallel()
			w := openWorld(t)
			a := w.attacker(attack.user)
			before := w.state()
			attack.do(a)
			if attack.hearing() { // others were busy meanwhile
				before = w.state()
			}
			if attack.harmless != "" {
				if err := a.harm(before); err != nil {
					t.Errorf("it should do none, since %s: %v", attack.harmless, err)
				}
				return
			}
			testenv.Eventually(t, patience, "harm", func() error {
				if a.harm(before) == nil {
					return errors.New("none")
				}
				return nil
			})
		})
	}
}
