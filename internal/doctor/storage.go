package doctor

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/refusal"
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/streams"
)

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
