package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/refusal"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/streams"
)

// unusedTarget replaces the target if no service is named. No service has it, and nothing is
// stored on it.
const unusedTarget = "omi.doctor.probe"

// examinePermissions tries what this account may do at the broker.
func (d *doctor) examinePermissions(ctx context.Context) {
	target := unusedTarget
	if d.named {
		target = d.target.String()
		asDeveloper := d.flags.MasterKey != ""
		// The accounts of developers, and of operators, who see the streams, need not rotate; a
		// service's need not bind.
		asService := d.flags.Key != "" || !asDeveloper && len(d.streams) == 0
		d.mayRequest(ctx, "rotation", events.RotationSubject+target, asService)
		d.mayRequest(ctx, "binding", events.BindingSubject+target, asDeveloper)
		d.mayRequest(ctx, "revocation", events.RevocationSubject+target, asDeveloper)
		d.mayRead(ctx, asService || asDeveloper)
	}
	d.mayForge(ctx, "invalidations", events.InvalidationSubject+target, streams.Invalidations)
	d.mayForge(ctx, "receipts", events.ReceiptSubject+target, streams.Receipts)
}

func (d *doctor) mayRequest(ctx context.Context, class, subject string, needed bool) {
	name := "publish " + class
	may, err := d.mayPublish(ctx, subject, streams.Requests)
	switch {
	case err != nil:
		d.warn(name, "not known: "+err.Error(), "see the stream "+streams.Requests+" above")
	case may:
		d.ok(name, "allowed")
	case needed:
		d.wrong(name, "this account may not publish to "+subject, "allow that subject in its publish permissions")
	default:
		d.ok(name, "not allowed, and not needed here")
	}
}

// mayRead tries to get receipts as a command does that waits for its answer: by listening, and by
// asking for one that it missed.
func (d *doctor) mayRead(ctx context.Context, needed bool) {
	const name = "read receipts"
	hears, last := events.AnswerSubject+d.target.String(), registryclient.LastReceiptSubject+d.target.String()
	subscription, err := d.Conn.SubscribeSync(hears)
	if err == nil {
		defer func() { _ = subscription.Unsubscribe() }() // the connection ends soon
		err = d.Conn.FlushTimeout(d.flags.Timeout)
	}
	if heard := d.Conn.LastError(); session.Denied(heard) && strings.Contains(heard.Error(), strconv.Quote(hears)) {
		err = heard
	}
	if err == nil {
		err = d.within(ctx, last, func(ctx context.Context) error {
			_, err := d.Conn.RequestWithContext(ctx, last, nil)
			return err
		})
	}
	switch {
	case err == nil:
		d.ok(name, "allowed")
	case session.Denied(err) && !needed:
		d.ok(name, "not allowed, and not needed here")
	case session.Denied(err):
		d.wrong(name, "this account can't get the registry's answers: "+err.Error(), "let it subscribe to "+hears+" and publish to "+last)
	default:
		d.warn(name, "not known: "+err.Error(), "see the stream "+streams.Receipts+" above")
	}
}

// mayForge tries what only the registry should be able to do.
func (d *doctor) mayForge(ctx context.Context, class, subject, stream string) {
	name := "publish " + class
	may, err := d.mayPublish(ctx, subject, stream)
	switch {
	case err != nil:
		d.warn(name, "not known: "+err.Error(), "see the stream "+stream+" above")
	case may:
		d.warn(name, "this account may publish what only the registry should: no false message is believed, but it can "+
			"push out some of the 64 messages that are kept", "deny omi.v1."+class+".> to every account but the registry's")
	default:
		d.ok(name, "not allowed, as it should be")
	}
}

// denials receives the broker's permission errors. They don't answer the request, which would wait
// in vain.
type denials struct {
	mu     sync.Mutex
	about  string
	cancel context.CancelCauseFunc
}

func (d *denials) expect(about string, cancel context.CancelCauseFunc) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.about, d.cancel = about, cancel
}

// heard ends the question under way if the denial belongs to it: a denial of an earlier question
// may come late.
func (d *denials) heard(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cancel != nil && errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(err.Error(), d.about) {
		d.cancel(err)
	}
}

// within asks a question, and waits at most --timeout, or until the broker denies it. about is a
// part of the subject that no earlier question had.
func (d *doctor) within(ctx context.Context, about string, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d.flags.Timeout)
	defer cancel()
	ctx, deny := context.WithCancelCause(ctx)
	d.denials.expect(about, deny)
	defer d.denials.expect("", nil)
	err := ask(ctx)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, nats.ErrPermissionViolation) {
		return cause
	}
	return process.Plain(err)
}

// impossibleSequence is a sequence that no stream reaches, and that the broker can read.
const impossibleSequence = math.MaxInt64

var errProbe = errors.New("the stream's answer is not the expected refusal")

// mayPublish finds out whether this account may publish on a subject of a stream. The message
// demands to follow a message that does not exist. The broker checks permissions first, and then
// the stream refuses it, so nothing is ever stored.
func (d *doctor) mayPublish(ctx context.Context, subject, stream string) (may bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.flags.Timeout)
	defer cancel()
	answers, err := d.Conn.SubscribeSync(d.Conn.NewInbox())
	if err != nil {
		return false, err
	}
	defer func() { _ = answers.Unsubscribe() }() // the connection ends soon
	probe := &nats.Msg{Subject: subject, Reply: answers.Subject, Header: nats.Header{}}
	probe.Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(impossibleSequence, 10))
	probe.Header.Set(jetstream.ExpectedStreamHeader, stream)
	// A denial comes before the answer to the flush.
	if err := errors.Join(d.Conn.PublishMsg(probe), d.Conn.FlushWithContext(ctx)); err != nil {
		return false, process.Plain(err)
	}
	if err := d.Conn.LastError(); session.Denied(err) && strings.Contains(err.Error(), strconv.Quote(subject)) {
		return false, nil
	}
	reply, err := answers.NextMsgWithContext(ctx)
	if err != nil {
		return false, process.Plain(err)
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil || ack.Error == nil {
		return false, fmt.Errorf("%w: %s", errProbe, reply.Data)
	}
	switch ack.Error.ErrorCode {
	case jetstream.JSErrCodeStreamWrongLastSequence, jetstream.JSErrCodeStreamWrongLastSequenceConstant:
		return true, nil
	}
	return false, fmt.Errorf("%w: %w", errProbe, ack.Error)
}

const (
	// probeStream and probeSubject begin the name and the subject of a stream that exists for a
	// moment. No other stream has the subject, and no process subscribes to it.
	probeStream  = "OMI_DOCTOR_"
	probeSubject = "omi.v1.doctor."
	probeHeaders = 512 // more than the headers of a probe take
	// abandoned is the age of a probe whose doctor was killed.
	abandoned = 10 * time.Minute
)

// The codes of nats-server's errors that say nothing about storing: the account may have no more
// streams, or none without a bound.
const (
	mostStreams   jetstream.ErrorCode = 10027
	bytesRequired jetstream.ErrorCode = 10113
)

// examineStorage stores a message and removes it. Nothing else shows that the disk is full or a
// limit is reached: an idle broker answers every question.
func (d *doctor) examineStorage(ctx context.Context) {
	const name = "storage"
	if err := refusal.Limits(d.Conn); err != nil {
		r, _ := refusal.Of(err)
		d.wrong(name, err.Error(), r.Do)
		return
	}
	if d.dry {
		return
	}
	took, err := d.storeProbe(ctx)
	code := jetstream.ErrorCode(0)
	if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) {
		code = refused.ErrorCode
	}
	r, refused := refusal.Of(err)
	left := (*leftError)(nil)
	switch {
	case err == nil:
		d.ok(name, "a message of %s was stored in %s, and removed", humanize.IBytes(events.MaxMessage), took.Round(time.Microsecond))
	case errors.As(err, &left):
		d.warn(name, "a message was stored, and is still there: "+err.Error(), "nats stream rm -f "+left.stream)
	case session.Denied(err):
		d.warn(name, "unknown: this account may not store a message to try it: "+session.Denial(err),
			"run this with an operator's account, which may publish to "+probeSubject+"*")
	case code == mostStreams, code == bytesRequired:
		d.warn(name, "unknown: the account's limits don't allow a test stream: "+err.Error(),
			"allow the account one stream more, without a limit, while this runs")
	case refused:
		d.wrong(name, "the broker "+r.What+": "+err.Error(), r.Do)
	default:
		d.wrong(name, "the broker does not store a message: "+err.Error(),
			"look at its log and its disk; a stream that could not write stays so until the broker is restarted")
	}
}

// leftError means that a probe could not be removed.
type leftError struct {
	stream string
	error
}

// storeProbe stores a message of the largest size in a stream like ours. took is the time that the
// broker needs for the message.
func (d *doctor) storeProbe(ctx context.Context) (took time.Duration, err error) {
	id := rand.Text()
	config := streams.InvalidationsConfig()
	config.Name, config.Subjects = probeStream+id, []string{probeSubject + id}
	config.Description = "omi doctor stores a message here. It may be deleted."
	config.DenyDelete, config.DenyPurge, config.RePublish = false, false, nil
	config.MaxMsgs, config.MaxMsgsPerSubject, config.MaxAge = 1, 1, config.Duplicates
	for _, stream := range d.streams {
		config.Replicas = max(config.Replicas, stream.CachedInfo().Config.Replicas)
	}
	// An account that may not delete the stream does not create one.
	if err := d.removeProbe(ctx, config.Name); !errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, err
	}
	d.sweepProbes(ctx)
	defer func() {
		removed := d.removeProbe(context.WithoutCancel(ctx), config.Name)
		if removed != nil && !errors.Is(removed, jetstream.ErrStreamNotFound) && err == nil {
			err = &leftError{config.Name, removed}
		}
	}()
	if err := d.within(ctx, config.Name, func(ctx context.Context) error {
		_, err := d.JetStream.CreateStream(ctx, config)
		return err
	}); err != nil {
		return 0, err
	}
	probe := &nats.Msg{Subject: probeSubject + id, Data: make([]byte, events.MaxMessage-probeHeaders)}
	err = d.within(ctx, probe.Subject, func(ctx context.Context) error {
		began := time.Now()
		_, err := d.JetStream.PublishMsg(ctx, probe, jetstream.WithMsgID(id))
		took = time.Since(began)
		return err
	})
	return took, err
}

func (d *doctor) removeProbe(ctx context.Context, stream string) error {
	return d.within(ctx, stream, func(ctx context.Context) error { return d.JetStream.DeleteStream(ctx, stream) })
}

// sweepProbes removes the probes of doctors that were killed. If it fails, the next doctor tries.
func (d *doctor) sweepProbes(ctx context.Context) {
	var left []string
	_ = d.within(ctx, "$JS.API.STREAM.LIST", func(ctx context.Context) error {
		list := d.JetStream.ListStreams(ctx, jetstream.WithStreamListSubject(probeSubject+"*"))
		for info := range list.Info() {
			if strings.HasPrefix(info.Config.Name, probeStream) && info.TimeStamp.Sub(info.Created) >= d.swept {
				left = append(left, info.Config.Name)
			}
		}
		return list.Err()
	})
	for _, stream := range left {
		_ = d.removeProbe(ctx, stream)
	}
}
