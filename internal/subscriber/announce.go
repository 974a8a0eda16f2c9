package subscriber

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/streams"
)

// What a message is worth depends on whom its reader trusts. One that can't be believed is acknowledged all the same: held back, a
// single foreign message would hold up everybody's rotation, and a flood of them the real events. So the durable's metadata says
// what the acknowledgements don't: whom this subscriber trusts, and what it failed on (docs/protocol.md §8.1). The
// metadata also remembers from where on the stream has to be read again once more is trusted. There, it ends with the durable:
// a new one reads all of the stream anyway.
//
// It is always written first: what is lost by a crash in between is done again.

const (
	// unbelievedMetadata has the lowest place in the stream of an event that was set aside since no trusted key signed it, and
	// whom those who did so trusted.
	unbelievedMetadata = "omi-unbelieved"
	// rereadMetadata has the same for what is being read again.
	rereadMetadata = "omi-reread"

	// failedAtMost is how many places are named, before there are too many.
	failedAtMost = 128
)

// said is what the metadata of a durable says. It passes over what others keep there.
type said struct{ metadata map[string]string }

// trusts returns whom the durable's subscriber trusts; false: it says nothing of that.
func (s said) trusts() ([]string, bool) {
	text, ok := s.metadata[events.TrustMetadata]
	return strings.Fields(text), ok
}

func (s said) setTrusts(words []string) {
	s.metadata[events.TrustMetadata] = strings.Join(slices.Sorted(slices.Values(words)), " ")
}

// narrow takes back the trust in those whom own is not.
func (s said) narrow(own []string) {
	if words, announced := s.trusts(); announced {
		s.setTrusts(common(words, own))
	}
}

// behind says whether events were set aside that own may believe, so that the stream is to be read again.
func (s said) behind(own []string) bool {
	return s.unbelieved(unbelievedMetadata).healedBy(own) || s.unbelieved(rereadMetadata).from > 0
}

// widen adds those whom own is, unless it is behind. A process with which this one shares its durable may trust others.
func (s said) widen(own []string) {
	if s.behind(own) {
		return
	}
	words, _ := s.trusts()
	s.setTrusts(slices.Compact(slices.Sorted(slices.Values(slices.Concat(words, own)))))
}

// unbelieved is from where on the stream is to be read again by those who trust others than these.
type unbelieved struct {
	from   uint64
	trusts []string
}

// healedBy says whether this trust may believe what was not believed.
func (u unbelieved) healedBy(own []string) bool {
	return u.from > 0 && len(common(own, u.trusts)) < len(own)
}

func (s said) unbelieved(key string) (u unbelieved) {
	if words := strings.Fields(s.metadata[key]); len(words) > 0 {
		u.from, _ = strconv.ParseUint(words[0], 10, 64)
		u.trusts = words[1:]
		u.from = max(u.from, 1) // what can't be read is of the whole stream
	}
	return u
}

// add notes that more was not believed.
func (s said) add(key string, more unbelieved) {
	if more.from == 0 {
		return
	}
	if before := s.unbelieved(key); before.from > 0 {
		more.from, more.trusts = min(more.from, before.from), common(more.trusts, before.trusts)
	}
	s.metadata[key] = strings.Join(append([]string{strconv.FormatUint(more.from, 10)}, more.trusts...), " ")
}

// failed returns the places of what could not be handled; many: there are too many to be named.
func (s said) failed() (places []uint64, many bool) {
	for _, word := range strings.Fields(s.metadata[events.FailedMetadata]) {
		place, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			return nil, true
		}
		places = append(places, place)
	}
	return places, false
}

func (s said) setFailed(places []uint64) {
	slices.Sort(places)
	places = slices.Compact(places)
	words := make([]string, len(places))
	for i, place := range places {
		words[i] = strconv.FormatUint(place, 10)
	}
	switch {
	case len(words) == 0:
		delete(s.metadata, events.FailedMetadata)
	case len(words) > failedAtMost:
		s.metadata[events.FailedMetadata] = events.FailedMany
	default:
		s.metadata[events.FailedMetadata] = strings.Join(words, " ")
	}
}

func (s said) addFailed(place uint64) {
	if places, many := s.failed(); !many {
		s.setFailed(append(places, place))
	}
}

// common returns the words of a that b has too.
func common(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(word string) bool { return !slices.Contains(b, word) })
}

// tell changes what the durable's metadata says, if that is a change.
func (s *Subscriber) tell(ctx context.Context, change func(said)) error {
	s.telling.Lock()
	defer s.telling.Unlock()
	consumer, err := s.cfg.JetStream.Consumer(ctx, streams.Invalidations, s.cfg.Durable)
	if err != nil {
		return fmt.Errorf("read what the durable %s says: %w", s.cfg.Durable, err)
	}
	config := consumer.CachedInfo().Config
	if _, is := s.foreign(config.Metadata); is {
		return errDoubtful // which watch looks into
	}
	next := said{maps.Clone(config.Metadata)}
	if next.metadata == nil {
		next.metadata = map[string]string{}
	}
	change(next)
	if maps.Equal(next.metadata, config.Metadata) {
		return nil
	}
	config.Metadata = next.metadata
	if _, err := s.cfg.JetStream.UpdateConsumer(ctx, streams.Invalidations, config); err != nil {
		return fmt.Errorf("say by the durable %s what it has not applied: %w", s.cfg.Durable, err)
	}
	return nil
}

// introduce has a durable that was opened say whom this process trusts, before anything is read by it.
func (s *Subscriber) introduce(ctx context.Context, consumer jetstream.Consumer) error {
	if err := s.countAside(ctx); err != nil {
		return err
	}
	own := s.Trust().Announcement()
	return s.tell(ctx, func(d said) {
		if _, announced := d.trusts(); !announced {
			d.setTrusts(nil)
		}
		d.narrow(own)
		d.widen(own)
		s.rereading.Store(d.behind(own)) // as_of says nothing until that is tried
	})
}

// Aside is what the metadata of a subscriber's durable say that it has set aside.
type Aside struct {
	From      uint64 // of what looks like events that no trusted key signed, the lowest place in the stream; 0: none
	Rereading bool   // some of that is believed by now, and the stream is being read again
	Failed    string // the places of events that could not be handled, or [events.FailedMany]; empty: none
}

// AsideOf reads it; false: nothing is set aside.
func AsideOf(metadata map[string]string) (Aside, bool) {
	d := said{metadata}
	a := Aside{
		From: d.unbelieved(unbelievedMetadata).from, Rereading: d.unbelieved(rereadMetadata).from > 0,
		Failed: metadata[events.FailedMetadata],
	}
	return a, a != Aside{}
}
