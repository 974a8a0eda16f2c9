package subscriber

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/streams"
)

// What a message is worth depends on whom its reader trusts. A message that can't be believed is
// acknowledged all the same: if it were held back, a single foreign message would delay everybody's
// rotation, and a flood of them would delay the real events. So the durable's metadata says what
// the acknowledgements don't: whom this subscriber trusts, and what it failed on (docs/protocol.md
// §8.1). The metadata also says from which place the stream must be read again once the subscriber
// trusts more. That ends with the durable, because a new durable reads the whole stream anyway.
//
// The metadata is always written first. After a crash in between, the work is done again.

const (
	// unbelievedMetadata has the lowest place in the stream of an event that was set aside because
	// no trusted key signed it, and whom the processes that set such events aside trusted.
	unbelievedMetadata = "omi-unbelieved"
	// rereadMetadata has the same for the events that are being read again.
	rereadMetadata = "omi-reread"

	// failedAtMost is how many places the metadata names. If there are more, it says only that.
	failedAtMost = 128
)

// announcement is what the metadata of a durable says. It leaves other entries alone.
type announcement struct{ metadata map[string]string }

// trusts returns whom the durable's subscriber trusts, or false if the metadata doesn't say.
func (s announcement) trusts() ([]string, bool) {
	text, ok := s.metadata[events.TrustMetadata]
	return strings.Fields(text), ok
}

func (s announcement) setTrusts(words []string) {
	s.metadata[events.TrustMetadata] = strings.Join(slices.Sorted(slices.Values(words)), " ")
}

// narrow removes the trust in everyone who is not in own.
func (s announcement) narrow(own []string) {
	if words, announced := s.trusts(); announced {
		s.setTrusts(common(words, own))
	}
}

// mustReread says whether the stream must be read again, because own may believe events that were
// set aside.
func (s announcement) mustReread(own []string) bool {
	return s.unbelieved(unbelievedMetadata).believedBy(own) || s.unbelieved(rereadMetadata).from > 0
}

// widen adds own, unless the durable is behind. Another process on this durable may trust others.
func (s announcement) widen(own []string) {
	if s.mustReread(own) {
		return
	}
	words, _ := s.trusts()
	s.setTrusts(slices.Compact(slices.Sorted(slices.Values(slices.Concat(words, own)))))
}

// unbelieved says from which place on a process must read the stream again if it trusts anyone who
// is not in trusts.
type unbelieved struct {
	from   uint64
	trusts []string
}

// believedBy says whether a process with this trust may believe events that were not believed.
func (u unbelieved) believedBy(own []string) bool {
	return u.from > 0 && len(common(own, u.trusts)) < len(own)
}

func (s announcement) unbelieved(key string) (u unbelieved) {
	if words := strings.Fields(s.metadata[key]); len(words) > 0 {
		u.from, _ = strconv.ParseUint(words[0], 10, 64)
		u.trusts = words[1:]
		u.from = max(u.from, 1) // if it can't be read, it means the whole stream
	}
	return u
}

// add notes that more events were not believed.
func (s announcement) add(key string, more unbelieved) {
	if more.from == 0 {
		return
	}
	if before := s.unbelieved(key); before.from > 0 {
		more.from, more.trusts = min(more.from, before.from), common(more.trusts, before.trusts)
	}
	s.metadata[key] = strings.Join(append([]string{strconv.FormatUint(more.from, 10)}, more.trusts...), " ")
}

// failed returns the places of the events that could not be handled, or many if there are too many
// to name.
func (s announcement) failed() (places []uint64, many bool) {
	for _, word := range strings.Fields(s.metadata[events.FailedMetadata]) {
		place, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			return nil, true
		}
		places = append(places, place)
	}
	return places, false
}

func (s announcement) setFailed(places []uint64) {
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

func (s announcement) addFailed(place uint64) {
	if places, many := s.failed(); !many {
		s.setFailed(append(places, place))
	}
}

// common returns the words of a that are also in b.
func common(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(word string) bool { return !slices.Contains(b, word) })
}

// announce changes the durable's metadata, unless the change has no effect.
func (s *Subscriber) announce(ctx context.Context, change func(announcement)) error {
	s.announcing.Lock()
	defer s.announcing.Unlock()
	consumer, err := s.cfg.JetStream.Consumer(ctx, streams.Invalidations, s.cfg.Durable)
	if err != nil {
		return fmt.Errorf("read what the durable %s says: %w", s.cfg.Durable, err)
	}
	config := consumer.CachedInfo().Config
	if _, is := s.foreign(config.Metadata); is {
		return errOtherOwner // watch looks into that
	}
	next := announcement{maps.Clone(config.Metadata)}
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

// announceUnbelieved announces from where on this process has not believed the stream, if there is
// such a place.
func (s *Subscriber) announceUnbelieved(ctx context.Context, u unbelieved) error {
	if u.from == 0 || s.consumer.Load() == nil {
		return nil
	}
	s.inHand.Stage(stageAnnounce)
	return s.announce(ctx, func(d announcement) {
		d.add(unbelievedMetadata, u)
		d.narrow(u.trusts)
	})
}

// announceTrust makes a durable that was just opened say whom this process trusts, before the
// process reads anything.
func (s *Subscriber) announceTrust(ctx context.Context) error {
	if err := s.countSetAside(ctx); err != nil {
		return err
	}
	own := s.Trust().Announcement()
	return s.announce(ctx, func(d announcement) {
		if _, announced := d.trusts(); !announced {
			d.setTrusts(nil)
		}
		d.narrow(own)
		d.widen(own)
		s.rereading.Store(d.mustReread(own)) // as_of stays unknown until that is tried
	})
}

// SetAside is what the metadata of a subscriber's durable says about messages that were set aside.
type SetAside struct {
	From      uint64 // the lowest place of an event that no trusted key signed; 0: none
	Rereading bool   // the stream is being read again, because some of it is believed now
	Failed    string // the places of failed events, or [events.FailedMany]; empty: none
}

// SetAsideOf reads it from the metadata, or returns false if nothing is set aside.
func SetAsideOf(metadata map[string]string) (SetAside, bool) {
	d := announcement{metadata}
	a := SetAside{
		From: d.unbelieved(unbelievedMetadata).from, Rereading: d.unbelieved(rereadMetadata).from > 0,
		Failed: metadata[events.FailedMetadata],
	}
	return a, a != SetAside{}
}
