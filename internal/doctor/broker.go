package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/refusal"
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/streams"
)

// examineBroker checks whether answers can reach us.
func (d *doctor) examineBroker() bool {
	rtt, err := d.Conn.RTT()
	if err != nil {
		d.wrong("broker", err.Error(), "look at the broker's log")
		return false
	}
	detail := fmt.Sprintf("%s, nats-server %s, %s away", d.Conn.ConnectedUrlRedacted(), d.Conn.ConnectedServerVersion(),
		rtt.Round(time.Microsecond))
	_, noTLS := d.Conn.TLSConnectionState()
	switch {
	case noTLS == nil:
		d.ok("broker", "%s, by TLS", detail)
	case local(d.Conn.ConnectedUrl()):
		d.ok("broker", "%s, without TLS on this machine", detail)
	default:
		d.warn("broker",
			detail+", without TLS: an attacker in between sees credentials and messages, and can hold them back",
			"give the broker a certificate, and name its authority with --nats-ca")
	}
	inbox := d.Conn.NewInbox()
	subscription, err := d.Conn.SubscribeSync(inbox)
	if err == nil {
		err = d.Conn.FlushTimeout(d.flags.Timeout)
	}
	if last := d.Conn.LastError(); session.Denied(last) && strings.Contains(last.Error(), inbox) {
		err = last
	}
	if err != nil {
		d.wrong("answers", "this account can't receive answers: "+err.Error(),
			"let it subscribe to _INBOX.>, and publish there if it answers questions")
		return false
	}
	_ = subscription.Unsubscribe() // the connection ends soon
	return true
}

// local reports whether a server is this machine, so that there is no network in between.
func local(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// examineJetStream checks whether it makes sense to ask for streams.
func (d *doctor) examineJetStream(ctx context.Context) bool {
	const name, subject = "jetstream", "$JS.API.INFO"
	var account *jetstream.AccountInfo
	err := d.within(ctx, subject, func(ctx context.Context) (err error) {
		account, err = d.JetStream.AccountInfo(ctx)
		return err
	})
	switch {
	case err == nil && nearly(account.Store, account.Limits.MaxStore):
		d.warn(name, fmt.Sprintf("nearly full: %s of the account's %s; messages that don't fit are refused",
			humanize.IBytes(account.Store), humanize.IBytes(uint64(account.Limits.MaxStore))),
			"give the account more, or find out what fills it: nats stream ls")
	case err == nil:
		d.ok(name, "enabled; streams: %d, consumers: %d", account.Streams, account.Consumers)
	case session.Denied(err):
		d.warn(name, "this account may not ask about JetStream",
			"let it publish to "+subject+", or run this with an operator's account")
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		r, _ := refusal.Of(err)
		d.wrong(name, err.Error(), r.Do)
		return false
	default:
		d.wrong(name, err.Error(), "look at the broker's log; a cluster without a leader does not answer")
		return false
	}
	return true
}

func (d *doctor) examineStreams(ctx context.Context) {
	for _, want := range []jetstream.StreamConfig{
		streams.RequestsConfig(), streams.InvalidationsConfig(), streams.ReceiptsConfig(),
	} {
		name := "stream " + want.Name
		var stream jetstream.Stream
		err := d.within(ctx, "$JS.API.STREAM.INFO."+want.Name, func(ctx context.Context) (err error) {
			asked := time.Now()
			if stream, err = d.JetStream.Stream(ctx, want.Name); err == nil {
				d.clock.read(asked, time.Now(), stream.CachedInfo().TimeStamp)
			}
			return err
		})
		switch {
		case session.Denied(err):
			d.warn(name, "this account may not look at it", "run this with an operator's account")
		case errors.Is(err, jetstream.ErrStreamNotFound):
			d.wrong(name, "it does not exist", d.madeBy(registryProgram)+"; is this the broker and the account that it uses?")
		case err != nil:
			d.wrong(name, err.Error(), "look at the broker's log")
		default:
			d.streams[want.Name] = stream
			d.examineStream(name, stream.CachedInfo(), want)
		}
	}
}

func (d *doctor) examineStream(name string, info *jetstream.StreamInfo, want jetstream.StreamConfig) {
	have := info.Config
	if meaning := streamMeaning(have, want); len(meaning) > 0 {
		d.wrong(name, strings.Join(meaning, "; "), "it differs from docs/protocol.md §4: "+
			"back its messages up (nats stream backup) and delete it (nats stream rm); "+d.madeBy(registryProgram))
		return
	}
	if limits := streamLimits(have, want); len(limits) > 0 {
		start := "start "
		if d.runs(registryProgram) {
			start = "restart "
		}
		d.wrong(name, strings.Join(limits, "; "), start+registryProgram+", which sets them; nats stream update does too")
		return
	}
	behind := 0
	if info.Cluster != nil {
		for _, peer := range info.Cluster.Replicas {
			if peer.Offline || !peer.Current {
				behind++
			}
		}
	}
	detail := fmt.Sprintf("messages: %d, replicas: %d", info.State.Msgs, max(1, have.Replicas))
	switch {
	case behind > 0:
		d.warn(name, fmt.Sprintf("%s, %d of them away or behind", detail, behind), "look at the brokers of the cluster")
	case have.Discard == jetstream.DiscardNew && (nearly(info.State.Bytes, have.MaxBytes) || nearly(info.State.Msgs, have.MaxMsgs)):
		d.warn(name, fmt.Sprintf("%s, nearly full: %s of %s; messages that don't fit are refused", detail,
			humanize.IBytes(info.State.Bytes), humanize.IBytes(uint64(max(0, have.MaxBytes)))), fullStream(want.Name))
	default:
		d.ok(name, "%s", detail)
	}
}

// nearly reports whether a value is most of a limit, if there is a limit.
func nearly(have uint64, limit int64) bool { return limit > 0 && have > uint64(limit)/5*4 }

// fullStream says what to do about a stream that is nearly full.
func fullStream(name string) string {
	if name == streams.Requests {
		return "is the registry running? If so, look for a flood: nats stream subjects " + name
	}
	return "restart omi-registry with a larger --max-event-bytes, or remove max_msgs"
}

// streamMeaning returns the settings that can't be changed without losing messages.
func streamMeaning(have, want jetstream.StreamConfig) []string {
	return differences([]difference{
		{"subjects", slices.Sorted(slices.Values(have.Subjects)), slices.Sorted(slices.Values(want.Subjects))},
		{"retention", have.Retention, want.Retention},
		{"storage", have.Storage, want.Storage},
		{"deny delete", have.DenyDelete, want.DenyDelete},
		{"deny purge", have.DenyPurge, want.DenyPurge},
		{"no acknowledgements", have.NoAck, want.NoAck},
		{"sealed", have.Sealed, want.Sealed},
	})
}

// streamLimits returns the settings that the registry makes when it starts. The broker reports -1
// for no limit, and our configurations have 0.
func streamLimits(have, want jetstream.StreamConfig) []string {
	return differences([]difference{
		{"largest message", max(0, have.MaxMsgSize), want.MaxMsgSize},
		{"discard policy", have.Discard, want.Discard},
		{"discard policy of a subject", have.DiscardNewPerSubject, want.DiscardNewPerSubject},
		{"messages kept of a subject", perSubject(have, want), want.MaxMsgsPerSubject},
		{"bound of its size", bounded(have, want), "some"},
		{"age of messages", have.MaxAge, want.MaxAge},
		{"window of duplicates", have.Duplicates, want.Duplicates},
		{"direct reading", have.AllowDirect, want.AllowDirect},
		{"republishing", republished(have, want), republished(want, want)},
	})
}

// perSubject is how many messages of a subject are kept. The operator decides how many requests may
// wait.
func perSubject(have, want jetstream.StreamConfig) int64 {
	if want.DiscardNewPerSubject && have.MaxMsgsPerSubject > 0 {
		return want.MaxMsgsPerSubject
	}
	return max(0, have.MaxMsgsPerSubject)
}

// bounded reports whether a stream that strangers can fill has a limit.
func bounded(have, want jetstream.StreamConfig) string {
	if want.Name != streams.Invalidations && have.MaxBytes <= 0 {
		return "none"
	}
	return "some"
}

// republished returns where a stream's messages are published again, if any party needs that.
func republished(have, want jetstream.StreamConfig) string {
	if have.RePublish == nil || want.RePublish == nil {
		return "none"
	}
	return have.RePublish.Destination
}

// difference is one member of a configuration.
type difference struct {
	what       string
	have, want any
}

func differences(members []difference) (different []string) {
	for _, m := range members {
		if have, want := fmt.Sprint(m.have), fmt.Sprint(m.want); have != want {
			different = append(different, fmt.Sprintf("%s: %s instead of %s", m.what, have, want))
		}
	}
	return different
}

// clockReading is the difference between this machine's clock and the broker's, or the registry's,
// because the broker tells its time only to an operator.
type clockReading struct {
	known  bool
	whose  string
	ahead  time.Duration // this machine's clock minus the other
	within time.Duration // the precision: half of the round trip
}

// readRegistry takes the registry's time, in seconds, from an answer. The broker's time is better,
// because requests are judged by it.
func (c *clockReading) readRegistry(asked, answered time.Time, seconds int64) {
	if c.known {
		return
	}
	c.read(asked, answered, time.Unix(seconds, 0).Add(time.Second/2))
	c.whose, c.within = "the registry's", c.within+time.Second/2
}

// read takes the broker's time from an answer. The fastest answer is the most precise.
func (c *clockReading) read(asked, answered, theirs time.Time) {
	half := answered.Sub(asked) / 2
	if theirs.IsZero() || c.known && c.within <= half {
		return
	}
	*c = clockReading{true, "the broker's", asked.Add(half).Sub(theirs), half}
}

// clockTolerance is the largest difference between synchronised clocks.
const clockTolerance = 5 * time.Second

// judge says what a difference means. skew is the registry's max_clock_skew, 0 if it is not known:
// a request whose time is further from the broker's is refused.
func (c *clockReading) judge(skew time.Duration) check {
	const name, fix = "clock", "synchronise it by NTP (timedatectl, chronyc tracking)"
	if !c.known {
		return check{
			name, stateWarning, "neither the broker's time nor the registry's is known: no stream could be examined",
			"name a service that is bound, or run this with an operator's account",
		}
	}
	if skew == 0 {
		skew = registrySkew
	}
	apart, sense := c.ahead.Abs().Round(time.Millisecond), "ahead of"
	if c.ahead < 0 {
		sense = "behind"
	}
	detail := fmt.Sprintf("this machine's clock is %s %s %s", apart, sense, c.whose)
	if c.ahead.Abs() <= c.within {
		detail = "this machine's clock agrees with " + c.whose
	}
	switch {
	case apart > skew:
		return check{name, stateWrong, fmt.Sprintf("%s, and the registry refuses requests from %s on", detail, skew), fix}
	case apart > clockTolerance:
		return check{name, stateWarning, fmt.Sprintf("%s; from %s on, the registry refuses requests", detail, skew), fix}
	}
	return check{Name: name, State: stateOK, Detail: detail}
}

// registrySkew is a registry's default max_clock_skew (§6).
const registrySkew = 300 * time.Second

func (d *doctor) examineClock() {
	d.checks = append(d.checks, d.clock.judge(time.Duration(d.Info.MaxClockSkew)*time.Second))
}
