package registry

import (
	"context"
	"log/slog"

	"omiappreg.org/keyrotation/events"
)

// findings is what a comparison finds, as it goes on.
type findings struct {
	behind map[events.Target]need
	lost   map[events.PublicKey]struct{}
	first  uint64 // the place in the stream of the first event that a service waits for; 0: none
	// twice: services with a sequence that was issued twice, and the last sequence in the stream.
	twice   map[events.Target]int64
	refused int
	ended   int
}

func newFindings() *findings {
	return &findings{
		behind: map[events.Target]need{}, lost: map[events.PublicKey]struct{}{}, twice: map[events.Target]int64{},
	}
}

func (v *findings) add(_ context.Context, c compared, _ []streamMessage) error {
	v.refused += c.refused
	v.ended += c.ended
	for _, e := range c.twice {
		v.twice[e.event.Target] = max(v.twice[e.event.Target], e.event.Sequence)
	}
	for _, e := range c.lacking {
		n := v.behind[e.event.Target]
		if n.place == 0 {
			n.place, n.signer = e.place, e.signer
		}
		n.sequence = max(n.sequence, e.event.Sequence)
		if key := e.event.NewKey; !key.IsZero() {
			n.keys = append(n.keys, key)
			v.lost[key] = struct{}{}
		}
		v.behind[e.event.Target] = n
	}
	return nil
}

// conclude removes the services that waiting can't help: a service with a sequence that was issued
// twice has two histories, and the database can't have both.
func (v *findings) conclude() {
	for t, sequence := range v.twice {
		v.twice[t] = max(sequence, v.behind[t].sequence)
		delete(v.behind, t)
	}
	for _, n := range v.behind {
		if v.first == 0 || n.place < v.first {
			v.first = n.place
		}
	}
}

// tell logs what an operator must know.
func (v *findings) tell(ctx context.Context, log *slog.Logger) {
	if v.refused > 0 {
		log.WarnContext(ctx, "the stream of events has messages that no key of this registry signed and the database does not know. "+
			"If the signing key has changed, name the earlier key with --trust", "messages", v.refused)
	}
	if v.ended > 0 {
		log.WarnContext(ctx, "the stream of events has messages that an earlier key of this registry signed after its end. They don't count: "+
			"check who may publish at the broker", "messages", v.ended)
	}
	for t, sequence := range v.twice {
		log.ErrorContext(ctx, "a sequence was issued twice, with different events, and that can't be undone: a subscriber may take either key for the service's. "+
			"Its developer must do Master Resets (omi reset) until its sequence is beyond the last one that was issued",
			"services", len(v.twice), "for_example", t.String(), "last_issued", sequence)
		break
	}
	for t, n := range v.behind { // any one of them
		log.ErrorContext(ctx, "the database lacks changes that were announced to everyone: it was restored from an older backup. "+
			"These services are on hold so that no sequence is issued twice; all others are served",
			"services", len(v.behind), "for_example", t.String(), "must_have_sequence", n.sequence, "do", RecoverHint, "signed_by", n.signer.String())
		break
	}
}
