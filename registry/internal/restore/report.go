package restore

import (
	"context"
	"log/slog"

	"omiappreg.org/keyrotation/events"
)

// report is what a comparison finds, as it goes on.
type report struct {
	behind  map[events.Target]need
	missing map[events.PublicKey]struct{}
	first   uint64 // the place in the stream of the first event that a service waits for; 0: none
	// twice: services with a sequence that was issued twice, and the last sequence in the stream.
	twice   map[events.Target]int64
	refused int
	ended   int
}

func newReport() *report {
	return &report{
		behind: map[events.Target]need{}, missing: map[events.PublicKey]struct{}{}, twice: map[events.Target]int64{},
	}
}

func (r *report) add(_ context.Context, c compared, _ []streamMessage) error {
	r.refused += c.refused
	r.ended += c.ended
	for _, e := range c.twice {
		r.twice[e.event.Target] = max(r.twice[e.event.Target], e.event.Sequence)
	}
	for _, e := range c.lacking {
		n := r.behind[e.event.Target]
		if n.place == 0 {
			n.place, n.signer = e.place, e.signer
		}
		n.sequence = max(n.sequence, e.event.Sequence)
		if key := e.event.NewKey; !key.IsZero() {
			n.keys = append(n.keys, key)
			r.missing[key] = struct{}{}
		}
		r.behind[e.event.Target] = n
	}
	return nil
}

// conclude removes the services that waiting can't help: a service with a sequence that was issued
// twice has two histories, and the database can't have both.
func (r *report) conclude() {
	for t, sequence := range r.twice {
		r.twice[t] = max(sequence, r.behind[t].sequence)
		delete(r.behind, t)
	}
	for _, n := range r.behind {
		if r.first == 0 || n.place < r.first {
			r.first = n.place
		}
	}
}

// tell logs what an operator must know.
func (r *report) tell(ctx context.Context, log *slog.Logger) {
	if r.refused > 0 {
		log.WarnContext(ctx, "the stream of events has messages that no key of this registry signed and the database does not know. "+
			"If the signing key has changed, name the earlier key with --trust", "messages", r.refused)
	}
	if r.ended > 0 {
		log.WarnContext(ctx, "the stream of events has messages that an earlier key of this registry signed after its end. They don't count: "+
			"check who may publish at the broker", "messages", r.ended)
	}
	for t, sequence := range r.twice {
		log.ErrorContext(ctx, "a sequence was issued twice, with different events, and that can't be undone: a subscriber may take either key for the service's. "+
			"Its developer must do Master Resets (omi reset) until its sequence is beyond the last one that was issued",
			"services", len(r.twice), "for_example", t.String(), "last_issued", sequence)
		break
	}
	for t, n := range r.behind { // any one of them
		log.ErrorContext(ctx, "the database lacks changes that were announced to everyone: it was restored from an older backup. "+
			"These services are on hold so that no sequence is issued twice; all others are served",
			"services", len(r.behind), "for_example", t.String(), "must_have_sequence", n.sequence, "do", RecoverHint, "signed_by", n.signer.String())
		break
	}
}
