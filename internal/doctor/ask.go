package doctor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

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
