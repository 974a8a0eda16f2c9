package provision

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/streams"
)

const (
	watchEvery = 3 * time.Second // a look is four small questions to the broker
	// deletedWithin is how long a broker may take to delete the files of a stream. It says before
	// that the stream is missing, and would delete the files of one that is made meanwhile.
	deletedWithin = 500 * time.Millisecond
	// answersWithin is how long the broker may take to answer the questions of a look.
	answersWithin = 5 * time.Second
)

// Watch looks every few seconds whether the streams and the durable are what the registry needs.
// They may vanish while it runs: a broker comes back with an empty store, or someone deletes them.
// The registry then does what it does at a start. Several replicas may do so at once.
type Watch struct {
	cfg     Config
	looking sync.Mutex // one look at a time

	// Deliveries is what the broker says of the durable.
	Deliveries consume.Deliveries

	mu      sync.Mutex
	streams error // what is wrong with the streams
	durable error // what is wrong with the durable
	opening error // why the durable can't be opened
	opened  opened
}

// Config says what to make and to watch. All members except Every are required.
type Config struct {
	JetStream jetstream.JetStream
	Replicas  int // of streams that are created
	Limits    Limits
	Trust     events.Trust // in the registry's own keys
	// Expect is called before a look at the stream of events; what it returns is called with what
	// the look found. Looks are not concurrent.
	Expect func() func(*jetstream.StreamInfo)
	Log    *slog.Logger
	Every  time.Duration // between looks; 0: the default
}

// opened is what the registry pulls from.
type opened struct {
	stream, durable time.Time // when they were created
	limits          consume.Limits
	stop            context.CancelCauseFunc
}

// Errors of what the registry needs at the broker.
var (
	// ErrNotReady means that nothing was looked at yet.
	ErrNotReady = errors.New("the registry is starting and takes no requests yet")
	// ErrSealed means that a stream takes no messages any more.
	ErrSealed = errors.New("the stream is sealed: it takes no messages, and that can't be undone; back up its messages and delete it, and the registry creates it again")
	// ErrPaused means that the durable delivers nothing until a time that an operator gave.
	ErrPaused = errors.New("the durable is paused")

	errOpening = errors.New("the registry has not opened its durable yet")
)

// NewWatch returns a watch that has not looked yet.
func NewWatch(cfg Config) *Watch {
	cfg.Every = cmp.Or(cfg.Every, watchEvery)
	return &Watch{cfg: cfg, streams: ErrNotReady, opening: errOpening}
}

// StreamsErr returns what is wrong with the streams, as the last look found them.
func (w *Watch) StreamsErr() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.streams
}

// ConsumerErr returns why no requests come: the durable can't be opened, is missing, or is
// paused.
func (w *Watch) ConsumerErr() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.opening != nil {
		return w.opening
	}
	return w.durable
}

// Run looks until ctx ends, or until a look finds what waiting can't change.
func (w *Watch) Run(ctx context.Context) error {
	tick := time.NewTicker(w.cfg.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !w.cfg.JetStream.Conn().IsConnected() {
			continue // it says nothing of the streams
		}
		err := w.look(ctx)
		if final := (*backoff.PermanentError)(nil); errors.As(err, &final) {
			return final.Unwrap()
		}
		w.lookAtDurable(ctx)
	}
}

// look makes the streams that are missing. Its error says why it can't; what is wrong with those
// that are there, only StreamsErr tells.
func (w *Watch) look(ctx context.Context) error {
	w.looking.Lock()
	defer w.looking.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	missing, wrong := w.examine(ctx)
	if len(missing) > 0 {
		select {
		case <-time.After(deletedWithin):
		case <-ctx.Done():
		}
		missing, wrong = w.examine(ctx)
	}
	var err error
	if len(missing) > 0 {
		w.cfg.Log.WarnContext(ctx, "streams are missing at the broker; the registry creates them again, as at a start", "streams", strings.Join(missing, " "))
		if err = w.Make(ctx); err != nil {
			wrong = fmt.Errorf("create the missing streams %s: %w", strings.Join(missing, " "), err)
			err = wrong
		} else {
			_, wrong = w.examine(ctx)
		}
	}
	if ctx.Err() == nil || wrong != nil {
		w.note(ctx, &w.streams, wrong)
	}
	return err
}

// note remembers what is wrong, and tells the log of a change. A broker that is away says nothing
// of what it has.
func (w *Watch) note(ctx context.Context, what *error, wrong error) {
	// The broker is away, or the registry ends.
	if wrong != nil && !w.cfg.JetStream.Conn().IsConnected() || errors.Is(wrong, context.Canceled) {
		return
	}
	w.mu.Lock()
	before := *what
	*what = wrong
	w.mu.Unlock()
	switch {
	case wrong != nil && (before == nil || before.Error() != wrong.Error()):
		w.cfg.Log.WarnContext(ctx, "the broker lacks what the registry needs", "error", wrong)
	case wrong == nil && before != nil && !errors.Is(before, ErrNotReady):
		w.cfg.Log.InfoContext(ctx, "the broker has what the registry needs again", "before", before)
	}
}

// examine looks at each stream. It reports how the stream of events stands, and tells the
// consumer if the stream of requests is another one.
func (w *Watch) examine(ctx context.Context) (missing []string, wrong error) {
	found := w.cfg.Expect()
	for _, want := range w.cfg.Limits.streams() {
		stream, err := w.cfg.JetStream.Stream(ctx, want.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			missing = append(missing, want.Name)
		}
		if err != nil {
			wrong = errors.Join(wrong, fmt.Errorf("stream %s: %w", want.Name, err))
			continue
		}
		info := stream.CachedInfo()
		err = sameMeaning(info.Config, want.StreamConfig)
		if info.Config.Sealed {
			err = ErrSealed
		}
		if err != nil {
			wrong = errors.Join(wrong, fmt.Errorf("stream %s: %w", want.Name, err))
		}
		switch want.Name {
		case streams.Requests:
			w.requestsAre(info.Created)
		case streams.Invalidations:
			found(info)
		}
	}
	return missing, wrong
}

// requestsAre ends the pulling from a stream of requests that is not there any more.
func (w *Watch) requestsAre(created time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.opened.stop != nil && !w.opened.stream.Equal(created) {
		w.opened.stop(consume.ErrReplaced)
	}
}

// lookAtDurable finds a durable that is missing, another one, or paused.
func (w *Watch) lookAtDurable(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, answersWithin)
	defer cancel()
	consumer, err := w.cfg.JetStream.Consumer(ctx, streams.Requests, streams.RegistryDurable)
	if err != nil {
		err = fmt.Errorf("durable %s: %w", streams.RegistryDurable, err)
	} else {
		info := consumer.CachedInfo()
		w.Deliveries.Note(info)
		if info.Paused {
			err = fmt.Errorf("%w until %s: nats consumer resume %s %s", ErrPaused, info.Config.PauseUntil.Format(time.RFC3339),
				streams.Requests, streams.RegistryDurable)
		}
	}
	w.note(ctx, &w.durable, err)
	if w.mayGoOn(consumer, err) {
		return
	}
	w.cfg.Log.WarnContext(ctx, "someone changed the limits of the durable; they are reset", "durable", streams.RegistryDurable,
		"found", fmt.Sprintf("%+v", consume.LimitsOf(consumer.CachedInfo().Config)))
	consumer, err = requestDurable(ctx, w.cfg.JetStream)
	if err != nil {
		w.cfg.Log.WarnContext(ctx, "resetting the limits of the durable failed, trying again", "error", err)
		return
	}
	// The broker may have set limits of its own, which stay.
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opened.limits = consume.LimitsOf(consumer.CachedInfo().Config)
}

// mayGoOn reports whether the durable delivers as it did when it was opened. It ends the pulling
// from one that is missing, or another one. Otherwise that would be noticed only after a while
// without a heartbeat.
func (w *Watch) mayGoOn(consumer jetstream.Consumer, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	gone := errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound)
	switch {
	case w.opened.stop == nil || consumer == nil && !gone:
		return true
	case gone || !consumer.CachedInfo().Created.Equal(w.opened.durable):
		w.opened.stop(consume.ErrReplaced)
		return true
	}
	return consume.LimitsOf(consumer.CachedInfo().Config) == w.opened.limits
}

// Open makes what is missing and opens the durable. The context that it returns ends once that is
// another one.
func (w *Watch) Open(ctx context.Context) (consumer jetstream.Consumer, created time.Time, until context.Context, err error) {
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.opening = err
	}()
	if err := w.look(ctx); err != nil {
		return nil, created, nil, err
	}
	if consumer, created, err = requestConsumer(ctx, w.cfg.JetStream); err != nil {
		return nil, created, nil, err
	}
	until, stop := context.WithCancelCause(ctx)
	w.note(ctx, &w.durable, nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.opened.stop != nil {
		w.opened.stop(consume.ErrReplaced) // it has ended
	}
	info := consumer.CachedInfo()
	w.opened = opened{created, info.Created, consume.LimitsOf(info.Config), stop}
	return consumer, created, until, nil
}

// Make makes and checks the streams. An error that waiting can't change is permanent.
func (w *Watch) Make(ctx context.Context) error {
	err := Ensure(ctx, w.cfg.JetStream, w.cfg.Replicas, w.cfg.Limits)
	if err == nil {
		err = checkOrigin(ctx, w.cfg.JetStream, w.cfg.Trust)
	}
	if errors.Is(err, ErrStreamMeaning) || errors.Is(err, ErrStreamRoom) || errors.Is(err, ErrOrigin) {
		err = backoff.Permanent(err)
	}
	return err
}
