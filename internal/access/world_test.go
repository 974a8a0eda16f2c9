package access_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/access"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/testenv"
	"omiappreg.org/keyrotation/registry"
	"omiappreg.org/keyrotation/streams"
)

const (
	patience = time.Minute

	cms  = "org.example.shop.cms"
	blog = "org.example.shop.blog"
	till = "org.example.bank.till" // of another developer

	deeper = "org.example.shop.more.till" // of a third one: an app's name may begin like another's

	authDurable = "authsub-web-1" // a name that no permission knows
)

// world is a broker with messages of every party in its streams, a registry that answers lookups,
// and the durables.
type world struct {
	t       *testing.T
	connect func(user string, denied func(error)) *nats.Conn
	// registry is the registry's own connection.
	registry *nats.Conn
	js       jetstream.JetStream
}

// securedWorld is a broker with the configuration of deploy/nats, and the accounts that this
// package makes.
func securedWorld(t *testing.T) (*world, *testenv.SecuredBroker) {
	t.Helper()
	b := testenv.NewSecuredBroker(t, func(nkey func(string) string) string {
		app := target(t, cms).App
		return access.Service(target(t, cms), nkey("cms")).String() + access.Service(target(t, blog), nkey("blog")).String() +
			access.Developer(app, nkey("developer")).String() +
			access.Receiver("shop", nkey("receiver"), 2).String()
	})
	w := &world{t: t, connect: b.Connect}
	w.furnish()
	return w, b
}

// openWorld is the same without any permissions: an attack that does no harm there is no attack.
func openWorld(t *testing.T) *world {
	t.Helper()
	url := testenv.NewBroker(t).URL()
	w := &world{t: t, connect: func(_ string, denied func(error)) *nats.Conn {
		nc := testenv.Connect(t, url)
		nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied(err) })
		return nc
	}}
	w.furnish()
	return w
}

func target(t testing.TB, text string) events.Target {
	t.Helper()
	parsed, err := events.ParseTarget(text)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// furnish makes streams, durables and messages, each as the party that must make it. So it also
// tries what every party needs.
func (w *world) furnish() {
	ctx := w.t.Context()
	none := func(err error) { w.t.Errorf("somebody lacks a permission: %v", err) }
	w.registry = w.connect("REGISTRY", none)
	w.js = w.jetStream(w.registry)
	w.must(registry.EnsureStreams(ctx, w.js, 1))
	for _, service := range []string{cms, blog, till} {
		for range 3 {
			w.publish(w.js, events.ReceiptSubject+service)
			w.publish(w.js, events.InvalidationSubject+service)
		}
	}
	w.publish(w.jetStream(w.connect("blog", none)), events.RotationSubject+blog)
	w.publish(w.jetStream(w.connect("blog", none)), events.RotationSubject+blog)
	var queue jetstream.Consumer
	for range 2 { // the registry makes its durable again if that allows too few pulls
		_ = w.js.DeleteConsumer(ctx, streams.Requests, streams.RegistryDurable) // there may be none
		var err error
		queue, err = w.js.CreateConsumer(ctx, streams.Requests, calm(streams.RegistryConsumer()))
		w.must(err)
	}
	w.take(queue)
	for user, durable := range map[string]string{"AUTHSUB": authDurable, "BILLINGSUB": streams.BillingDurable} {
		js := w.jetStream(w.connect(user, none))
		consumer, err := js.CreateConsumer(ctx, streams.Invalidations, calm(streams.SubscriberConsumer(durable)))
		w.must(err)
		w.must(w.take(consumer).DoubleAck(ctx))
		w.take(consumer)
	}
	service, err := api.Register(ctx, w.registry, slog.New(slog.DiscardHandler), api.Service{Name: "omi-registry"},
		api.Endpoint{Name: "registry", Subject: events.LookupRegistrySubject, Handle: func(context.Context, api.Call) (api.Answer, error) {
			return api.JSON("the registry")
		}},
		api.Endpoint{Name: "receipt", Subject: events.LookupReceiptSubject, Handle: func(_ context.Context, c api.Call) (api.Answer, error) {
			return api.JSON("of " + c.AppID + "." + c.ServiceID)
		}})
	w.must(err)
	w.t.Cleanup(func() { _ = service.Stop() })
	w.must(w.registry.Flush())
	for _, user := range []string{"cms", "developer"} {
		w.findReceipts(w.connect(user, none))
	}
	for _, service := range []string{till, blog, deeper} { // the last receipts, of others
		w.publish(w.js, events.ReceiptSubject+service)
	}
}

// tell publishes a receipt as the registry does.
func (w *world) tell(service string) {
	w.t.Helper()
	w.publish(w.js, events.ReceiptSubject+service)
	w.must(w.registry.Publish(events.AnswerSubject+service, []byte("of "+service)))
}

// findReceipts gets an answer: it hears it, or finds it later.
func (w *world) findReceipts(nc *nats.Conn) {
	w.t.Helper()
	heard, err := nc.SubscribeSync(events.AnswerSubject + cms)
	w.must(err)
	w.must(nc.Flush())
	w.tell(cms)
	_, err = heard.NextMsg(patience)
	w.must(err)
	for _, question := range []string{"$JS.API.DIRECT.GET.OMI_RECEIPTS." + events.ReceiptSubject, events.LookupReceiptSubject} {
		reply, err := nc.Request(question+cms, nil, patience)
		w.must(err)
		if !strings.Contains(string(reply.Data), "cms") {
			w.t.Errorf("%s: %v %s", question, reply.Header, reply.Data)
		}
	}
}

// calm is a consumer that delivers nothing again during a test.
func calm(cfg jetstream.ConsumerConfig) jetstream.ConsumerConfig {
	cfg.AckWait = time.Hour
	return cfg
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) jetStream(nc *nats.Conn) jetstream.JetStream {
	w.t.Helper()
	js, err := jetstream.New(nc)
	w.must(err)
	return js
}

func (w *world) publish(js jetstream.JetStream, subject string) {
	w.t.Helper()
	_, err := js.Publish(w.t.Context(), subject, []byte("of "+subject))
	w.must(err)
}

// take gets a message, which is not acknowledged yet.
func (w *world) take(consumer jetstream.Consumer) jetstream.Msg {
	w.t.Helper()
	msg, err := consumer.Next(jetstream.FetchMaxWait(patience))
	w.must(err)
	return msg
}

// state is everything that an attack could change: the contents of the streams, and the progress of
// the durables.
func (w *world) state() string {
	ctx := context.WithoutCancel(w.t.Context())
	var b strings.Builder
	for _, name := range []string{streams.Requests, streams.Invalidations, streams.Receipts} {
		stream, err := w.js.Stream(ctx, name)
		if err != nil {
			fmt.Fprintln(&b, name, err)
			continue
		}
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter(">"))
		w.must(err)
		delete(info.State.Subjects, events.RotationSubject+cms) // it may ask for its own rotation
		fmt.Fprintln(&b, name, line(w.t, info.Config), info.State.FirstSeq, line(w.t, info.State.Subjects))
		var durables []string
		list := stream.ListConsumers(ctx)
		for c := range list.Info() {
			if c.Config.Durable != "" {
				durables = append(durables, fmt.Sprintln(" ", c.Name, line(w.t, c.Config), c.Delivered.Stream, c.AckFloor.Stream, c.NumAckPending, c.Paused))
			}
		}
		if list.Err() != nil {
			w.t.Fatal(list.Err())
		}
		slices.Sort(durables)
		b.WriteString(strings.Join(durables, ""))
	}
	return b.String()
}

func line(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// attacker is a user who tries forbidden things.
type attacker struct {
	*world
	nc     *nats.Conn
	denied chan error
	leaked string // what the attacker has seen
}

func (w *world) attacker(user string) *attacker {
	a := &attacker{world: w, denied: make(chan error, 1000)}
	a.nc = w.connect(user, func(err error) { a.denied <- err })
	return a
}

// say publishes. The broker has looked at it when this returns.
func (a *attacker) say(subject, reply, body string) {
	a.t.Helper()
	a.must(a.nc.PublishMsg(&nats.Msg{Subject: subject, Reply: reply, Data: []byte(body)}))
	a.must(a.nc.Flush())
}

// ask asks, and returns the answer. It returns nothing if no answer comes, or if the broker doesn't
// permit the question.
func (a *attacker) ask(subject, body string) string {
	a.t.Helper()
	for len(a.denied) > 0 {
		a.t.Logf("late: %v", <-a.denied)
	}
	answers, err := a.nc.SubscribeSync(a.nc.NewInbox())
	a.must(err)
	a.say(subject, answers.Subject, body)
	got := make(chan *nats.Msg, 1)
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	go func() {
		msg, _ := answers.NextMsgWithContext(ctx)
		got <- msg
	}()
	select {
	case msg := <-got:
		if msg == nil || msg.Header.Get("Status") != "" {
			return ""
		}
		return msg.Subject + " " + string(msg.Data)
	case err := <-a.denied:
		a.must(ctx.Err())
		if !errors.Is(err, nats.ErrPermissionViolation) {
			a.t.Error(err)
		}
		return ""
	}
}

// hear subscribes, while others are busy, and notes messages that are not for this user.
func (a *attacker) hear(subject string) {
	a.t.Helper()
	heard, err := a.nc.SubscribeSync(subject)
	a.must(err)
	a.must(a.nc.Flush())
	victim := a.connect("blog", func(error) {})
	a.publish(a.jetStream(victim), events.RotationSubject+blog)
	a.tell(blog)
	a.publish(a.js, events.InvalidationSubject+blog)
	consumer, err := a.js.Consumer(a.t.Context(), streams.Requests, streams.RegistryDurable)
	a.must(err)
	a.must(a.take(consumer).DoubleAck(a.t.Context()))
	for _, subject := range []string{events.LookupRegistrySubject, events.AuthVerifySubject} {
		ctx, cancel := context.WithTimeout(a.t.Context(), 200*time.Millisecond) // there may be no answer
		_, _ = victim.RequestWithContext(ctx, subject, nil)
		cancel()
	}
	a.must(victim.Flush())
	a.must(a.registry.Flush())
	a.must(a.nc.Flush())
	if n, _, _ := heard.Pending(); n > 0 {
		msg, err := heard.NextMsg(patience)
		a.must(err)
		a.leaked = msg.Subject
	}
}

// read makes a consumer of receipts in different ways, and reads its messages.
func (a *attacker) read(create, config string) {
	a.t.Helper()
	body := fmt.Sprintf(`{"stream_name": "OMI_RECEIPTS", "config": {"ack_policy": "none", "deliver_policy": "all", "mem_storage": true, %s}}`, config)
	_, text, _ := strings.Cut(a.ask("$JS.API.CONSUMER.CREATE."+create, body), " ")
	var made struct{ Name string }
	if json.Unmarshal([]byte(text), &made) != nil || made.Name == "" {
		return
	}
	for range 9 {
		a.peek(a.ask("$JS.API.CONSUMER.MSG.NEXT.OMI_RECEIPTS."+made.Name, `{"no_wait": true}`))
	}
}

// push has all events delivered to a subject. JetStream pushes to a subject that has a subscriber,
// so every party subscribes where it may.
func (a *attacker) push(victim string) {
	a.t.Helper()
	for _, user := range []string{"cms", "blog", "developer", "OPERATOR", "REGISTRY", "AUTHSUB"} {
		nc := a.connect(user, func(error) {})
		for _, subject := range []string{victim, events.AnswerSubject + blog, events.ChangeSubject + blog} {
			_, err := nc.SubscribeSync(subject)
			a.must(err)
		}
		a.must(nc.Flush())
	}
	// A message that is pushed to a subject of the registry does arrive. By then, the other has
	// arrived, too.
	heard, err := a.registry.SubscribeSync(a.registry.NewInbox())
	a.must(err)
	a.must(a.registry.Flush())
	for _, subject := range []string{victim, events.AnswerSubject + blog, events.ChangeSubject + blog, heard.Subject} {
		name := rand.Text()
		a.ask("$JS.API.CONSUMER.CREATE.OMI_INVALIDATIONS."+name, fmt.Sprintf(
			`{"stream_name": "OMI_INVALIDATIONS", "config": {"name": %q, "deliver_subject": %q, "ack_policy": "none"}}`, name, subject))
	}
	_, err = heard.NextMsg(patience)
	a.must(err)
}

// peek notes an answer that is about another party.
func (a *attacker) peek(answer string) {
	if !strings.Contains(answer, `"error"`) && (strings.Contains(answer, blog) || strings.Contains(answer, till) || strings.Contains(answer, deeper) || strings.Contains(answer, "b2Yg")) {
		a.leaked = answer
	}
}

// harm returns what an attack has done.
func (a *attacker) harm(before string) error {
	if a.leaked != "" {
		return errors.New("he has got " + a.leaked)
	}
	if diff := cmp.Diff(bytes.Split([]byte(before), []byte("\n")), bytes.Split([]byte(a.state()), []byte("\n"))); diff != "" {
		return errors.New("changed: " + diff)
	}
	return nil
}
