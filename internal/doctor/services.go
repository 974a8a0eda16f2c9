package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/internal/subscriber"
	"omiappreg.org/keyrotation/streams"
)

// examineDurables checks which durables read the streams, and how far each has come.
func (d *doctor) examineDurables(ctx context.Context) {
	for _, s := range []struct {
		stream string
		known  map[string]string // that §4 names, with their programs
		absent state
		more   string
	}{
		{streams.Requests, map[string]string{streams.RegistryDurable: registryProgram}, stateWrong, "; until then, no request is read"},
		{
			streams.Invalidations, map[string]string{streams.AuthDurable: authProgram, streams.BillingDurable: billingProgram}, stateWarning,
			"; this is right if you chose another name (--durable)",
		},
	} {
		stream, ok := d.streams[s.stream]
		if !ok {
			continue
		}
		found := map[string]*jetstream.ConsumerInfo{}
		err := d.within(ctx, "$JS.API.CONSUMER.LIST."+s.stream, func(ctx context.Context) error {
			list := stream.ListConsumers(ctx)
			for info := range list.Info() {
				if info.Config.Durable != "" {
					found[info.Config.Durable] = info
				}
			}
			return list.Err()
		})
		switch {
		case session.Denied(err):
			d.warn("durables of "+s.stream, "this account may not look at them", "run this with an operator's account")
			continue
		case err != nil:
			d.wrong("durables of "+s.stream, err.Error(), "look at the broker's log")
			continue
		}
		if s.stream == streams.Invalidations {
			d.readers = found
		}
		for _, name := range slices.Sorted(maps.Keys(s.known)) {
			if !exists(found, name) {
				d.note("durable "+name, s.absent, "it does not exist", d.madeBy(s.known[name])+s.more)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(found)) {
			d.examineDurable("durable "+name, found[name])
		}
	}
}

// exists reports whether there is a durable of that name, or of an instance of it.
func exists(found map[string]*jetstream.ConsumerInfo, name string) bool {
	for have, info := range found {
		instance := info.Config.Metadata[streams.InstanceMetadata]
		if have == name || instance != "" && have == streams.InstanceDurable(name, instance) {
			return true
		}
	}
	return false
}

func (d *doctor) examineDurable(name string, info *jetstream.ConsumerInfo) {
	have := info.Config
	want := streams.SubscriberConsumer(have.Durable) // the registry's has the same settings
	if different := differences([]difference{
		{"deliver policy", have.DeliverPolicy, want.DeliverPolicy},
		{"acknowledge policy", have.AckPolicy, want.AckPolicy},
		{"filter", have.FilterSubject + strings.Join(have.FilterSubjects, ","), ""},
		{"headers only", have.HeadersOnly, false},
		{"push", have.DeliverSubject != "", false},
	}); len(different) > 0 {
		d.wrong(name, strings.Join(different, "; "),
			fmt.Sprintf("it misses messages: delete it (nats consumer rm %s %s); its process, if it runs, makes it again",
				info.Stream, have.Durable))
		return
	}
	detail := fmt.Sprintf("messages waiting: %d, in hand: %d", info.NumPending, info.NumAckPending)
	if info.AckFloor.Last != nil {
		detail += ", the last was acknowledged at " + printable.Date(info.AckFloor.Last.Unix())
	}
	if info.Stream == streams.Invalidations && !streams.CoreDurable(have.Durable) {
		detail += ", changes don't wait for it (unless --wait-for of omi-registry names it)"
	}
	start, held := "start the process of this durable, or restart it if it runs", ""
	gone := fmt.Sprintf("; if it is gone for good, delete the durable (nats consumer rm %s %s)", info.Stream, have.Durable)
	if forgotten := have.InactiveThreshold; forgotten > 0 {
		gone = fmt.Sprintf("; if it is gone for good, the broker forgets the durable after %v", forgotten)
	}
	if info.Stream == streams.Requests {
		start, gone = d.startAgain(registryProgram), ""
		held = "; or services are on hold after a restore, until omi-registry recover has run (omi_registry_services_behind)"
	}
	if most := have.MaxRequestBatch; most > 0 { // this may be the broker's own limit
		detail += fmt.Sprintf(", at most %d messages a pull", most)
	}
	if info.NumWaiting == 0 {
		detail += ", no process is fetching now"
	}
	switch {
	case info.Paused:
		d.warn(name, fmt.Sprintf("%s; it is paused for %s", detail, info.PauseRemaining.Round(time.Second)),
			"nats consumer resume "+info.Stream+" "+have.Durable)
	case have.MaxRequestExpires > 0, have.MaxRequestMaxBytes > 0:
		d.warn(name, fmt.Sprintf("%s; its pulls were limited (time: %s, bytes: %d)", detail, have.MaxRequestExpires, have.MaxRequestMaxBytes),
			"its process removes the limit within seconds: look again; if it stays, start the process")
	case info.NumWaiting == 0 && info.NumAckPending == 0:
		d.warn(name, detail, start+gone)
	case info.NumPending > 0 || info.NumAckPending > 0:
		d.warn(name, detail, "a backlog: look again; if it does not shrink, look at the log and at /readyz of its process"+held+gone)
	default:
		d.ok(name, "%s", detail)
	}
}

// The programs whose answers doctor remembers.
const (
	registryProgram = "omi-registry"
	authProgram     = "omi-authsub"
	billingProgram  = "omi-billingsub"
)

// askProcesses asks each process a question before any finding, because the advice about a stream
// depends on which processes run. Auth and Billing get an empty question: a process that says what
// is missing in it is there.
func (d *doctor) askProcesses(ctx context.Context) {
	d.answers = map[string]error{
		registryProgram: d.within(ctx, events.LookupRegistrySubject, func(ctx context.Context) (err error) {
			d.Info, err = registryclient.RegistryInfo(ctx, d.Conn)
			return err
		}),
	}
	for program, subject := range map[string]string{authProgram: events.AuthVerifySubject, billingProgram: events.BillingAttributeSubject} {
		err := d.within(ctx, subject, func(ctx context.Context) error {
			_, err := registryclient.Ask(ctx, d.Conn, subject, []byte("{}"))
			return err
		})
		if answer := (*api.Problem)(nil); errors.As(err, &answer) && answer.Status == http.StatusBadRequest {
			err = nil
		}
		d.answers[program] = err
	}
}

// runs reports whether a process of that program answers.
func (d *doctor) runs(program string) bool {
	err, asked := d.answers[program]
	return asked && err == nil
}

// startAgain says to start a program, or to restart one that runs and does not do its work.
func (d *doctor) startAgain(program string) string {
	if d.runs(program) {
		return "restart " + program + ", which answers and does not read: its log and /readyz say why"
	}
	return "start " + program
}

// madeBy says what to do about a missing stream or durable.
func (d *doctor) madeBy(program string) string {
	if d.runs(program) {
		return program + " runs, and makes it again within seconds: look again; if it stays away, look at the log of " + program
	}
	return "start " + program + ", which makes it"
}

// examineRegistry checks what the registry says of itself, and decides which keys are believed from
// here on.
func (d *doctor) examineRegistry() {
	const name = "registry"
	err := d.answers[registryProgram]
	switch {
	case session.Denied(err):
		d.wrong(name, "this account may not ask it", "let it publish to omi.v1.lookup.>")
		return
	case errors.Is(err, registryclient.ErrNoRegistry):
		d.wrong(name, "no registry answers",
			"start omi-registry (or omi dev) at this broker, in this account; if it runs, its log says what it waits for; requests wait in their stream")
		return
	case err != nil:
		d.wrong(name, err.Error(), "look at the log of omi-registry")
		return
	}
	if d.Trust, err = events.NewTrust(d.Info.Origin, d.Info.PublicKeys...); err != nil {
		d.wrong(name, "its description of itself has no valid key: "+err.Error(), "is it of this version?")
		return
	}
	detail := "answers for " + d.Info.Origin
	if d.flags.Origin != "" && d.flags.Origin != d.Info.Origin {
		d.wrong(name, fmt.Sprintf("%s, and --origin says %s", detail, d.flags.Origin), "another registry answers here: is --nats-url right?")
		return
	}
	if !d.flags.Trusts() {
		d.warn(name, fmt.Sprintf("%s; believed on first sight: %s", detail, session.KeyList(d.Info.PublicKeys)),
			"get its public key from its operator, and give it with --trust")
		return
	}
	trusted := d.flags.Trusted()
	trusted.Origin = d.Info.Origin
	if d.Trust, err = trusted.Load(); err != nil {
		d.wrong(name, "--trust: "+err.Error(), "give the registry's public key")
		return
	}
	if !slices.ContainsFunc(d.Info.PublicKeys, func(k events.PublicKey) bool { return slices.Contains(d.Trust.PublicKeys(), k) }) {
		d.wrong(name, fmt.Sprintf("%s, with a key that --trust does not name: %s", detail, session.KeyList(d.Info.PublicKeys)),
			"another registry answers here, or its key was changed: ask its operator")
	} else {
		d.ok(name, "%s, with a key that is trusted", detail)
	}
}

// examineServices checks whether Auth and Billing answer.
func (d *doctor) examineServices() {
	for _, one := range []struct{ name, subject, program string }{
		{"auth", events.AuthVerifySubject, authProgram},
		{"billing", events.BillingAttributeSubject, billingProgram},
	} {
		switch err := d.answers[one.program]; {
		case err == nil:
			d.ok(one.name, "answers")
		case session.Denied(err):
			d.warn(one.name, "this account may not ask it", "let it publish to "+one.subject+", if it needs to")
		case errors.Is(err, nats.ErrNoResponders):
			d.wrong(one.name, "no process answers",
				"start "+one.program+" at this broker, in this account; if it runs, its log says what it waits for")
		default:
			d.wrong(one.name, err.Error(), "look at the log of "+one.program)
		}
	}
}

// examineService checks the service that the flags name.
func (d *doctor) examineService(ctx context.Context) {
	const name = "service"
	if !d.named || d.Info.Origin == "" {
		return // there is no answer
	}
	var record events.ServiceRecord
	err := d.within(ctx, events.LookupServiceSubject, func(ctx context.Context) (err error) {
		asked := time.Now()
		if record, err = d.Record(ctx, d.target); err == nil {
			d.clock.readRegistry(asked, time.Now(), record.Timestamp)
		}
		return err
	})
	switch {
	case errors.Is(err, registryclient.ErrUnknownService):
		d.wrong(name, d.target.String()+" was never bound", "omi bind "+session.FlagsOf(d.target)+" --master-key FILE --key FILE")
		return
	case errors.As(err, new(*events.Refusal)):
		d.wrong(name, err.Error(), "it is not the registry that you trust, or its key was changed: ask its operator")
		return
	case err != nil:
		d.wrong(name, err.Error(), "look at the log of omi-registry")
		return
	}
	d.service = record
	detail := fmt.Sprintf("%s, sequence %d", record.Status, record.Sequence)
	var behind []string
	for durable, heard := range record.Propagation {
		if !heard {
			behind = append(behind, durable)
		}
	}
	slices.Sort(behind)
	if others := slices.Sorted(maps.Keys(record.OtherDurables)); len(others) > 0 {
		detail += "; changes don't wait for the durables " + strings.Join(others, ", ")
	}
	switch {
	case record.Status == events.Revoked:
		d.warn(name, detail, "to use it again, bind it with a new key")
	case len(behind) > 0:
		d.warn(name, detail+"; its last change is not applied by "+strings.Join(behind, ", "), "see these durables above")
	default:
		d.ok(name, "%s", detail)
	}
}

// examineTrusts checks what the durables of the stream of events say of themselves: which keys
// their processes trust, and what they have set aside.
func (d *doctor) examineTrusts() {
	for _, durable := range slices.Sorted(maps.Keys(d.readers)) {
		d.examineTrust("trust of "+durable, durable, d.readers[durable].Config.Metadata)
	}
}

func (d *doctor) examineTrust(name, durable string, metadata map[string]string) {
	const give = "give its process the key with --trust, or in its --trust-file, which needs no restart: it then applies what it had set aside"
	list := "list them with the command set-aside of its process"
	if aside, ok := subscriber.SetAsideOf(metadata); ok && aside.Failed != "" {
		d.wrong(name, fmt.Sprintf("%s could not handle the events at these places of the stream: %s", durable, aside.Failed),
			list+", fix the cause, and restart its process")
	}
	trusted, announced := metadata[events.TrustMetadata]
	if !announced {
		return // of another program
	}
	words := strings.Fields(trusted)
	untrusted := slices.DeleteFunc(slices.Clone(d.Info.PublicKeys), func(key events.PublicKey) bool {
		return events.Trusts(words, d.Info.Origin, key, time.Time{}, 0)
	})
	switch aside, _ := subscriber.SetAsideOf(metadata); {
	case len(untrusted) > 0:
		d.wrong(name, fmt.Sprintf("%s does not trust the registry's current key, and sets its events aside: %s", durable, session.KeyList(untrusted)),
			"ask the registry's operator whether this is its key; if so, "+give)
	case aside.Rereading:
		d.warn(name, durable+" is reading the stream again, because it now believes events that it had set aside",
			"look again; if this stays, look at the log of its process")
	case aside.From > 0:
		d.warn(name, fmt.Sprintf("%s has set aside messages from sequence %d of the stream on: no key that it trusts signed them", durable, aside.From),
			list+"; if the registry has or had that key, "+give+"; otherwise check which accounts may publish at the broker")
	}
}
