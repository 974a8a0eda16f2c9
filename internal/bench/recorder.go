package bench

import (
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"

	"omiappreg.org/keyrotation/events"
)

// Recorder records the progress of a load. The three parties call its methods Committed, Auth and
// Billing, each from one goroutine at a time; these methods take no lock.
type Recorder struct {
	load  *Load
	seed  maphash.Seed
	began time.Time

	published []int64 // by rotation: when it was due, in nanoseconds since began
	committed party
	auth      party
	billing   party

	left     []atomic.Int32 // by rotation: subscribers that have not applied it
	applied  atomic.Int64   // rotations that both have applied
	foreign  atomic.Int64   // events that no rotation of the load asked for
	done     chan struct{}  // closed when both have applied all
	released chan struct{}  // one for each that both have applied; nil without a closed loop
}

// party holds what one of the parties has reported.
type party struct {
	at       []int64  // by rotation: when, in nanoseconds since began; 0: not yet
	nonces   []uint64 // by rotation: a hash of the event's nonce
	bindings atomic.Int64
	distinct atomic.Int64
	doubled  atomic.Int64 // reported again, with another event
}

// NewRecorder returns a recorder. inFlight limits the rotations under way in a closed loop; 0 means
// no limit.
func NewRecorder(l *Load, inFlight int) *Recorder {
	r := &Recorder{
		load: l, seed: maphash.MakeSeed(), began: time.Now(), published: make([]int64, l.Rotations),
		left: make([]atomic.Int32, l.Rotations), done: make(chan struct{}),
	}
	for i := range r.left {
		r.left[i].Store(2)
	}
	for _, p := range []*party{&r.committed, &r.auth, &r.billing} {
		p.at, p.nonces = make([]int64, l.Rotations), make([]uint64, l.Rotations)
	}
	if inFlight > 0 {
		r.released = make(chan struct{}, inFlight)
		for range inFlight {
			r.released <- struct{}{}
		}
	}
	return r
}

// Begin sets when the measurement begins: no publication counts as earlier.
func (r *Recorder) Begin(at time.Time) {
	begins := at.Sub(r.began).Nanoseconds()
	for i := range r.published {
		r.published[i] = max(r.published[i], begins)
	}
}

// Published notes when a rotation was due to be published.
func (r *Recorder) Published(rotation int, at time.Time) {
	r.published[rotation] = at.Sub(r.began).Nanoseconds()
}

// Released returns a channel that has one element for each rotation that may be published now in a
// closed loop.
func (r *Recorder) Released() <-chan struct{} { return r.released }

// Done returns a channel that is closed when both subscribers have applied all rotations.
func (r *Recorder) Done() <-chan struct{} { return r.done }

// Applied returns how many rotations both subscribers have applied.
func (r *Recorder) Applied() int64 { return r.applied.Load() }

// BoundByAuth returns how many bindings Auth has applied.
func (r *Recorder) BoundByAuth() int64 { return r.auth.bindings.Load() }

// BoundByBilling returns how many bindings Billing has applied.
func (r *Recorder) BoundByBilling() int64 { return r.billing.bindings.Load() }

// Committed takes the events that the registry committed.
func (r *Recorder) Committed(batch []events.Invalidation) {
	r.note(&r.committed, batch, func(int) {})
}

// Auth takes the events that Auth applied.
func (r *Recorder) Auth(batch []events.Invalidation) { r.note(&r.auth, batch, r.appliedBy) }

// Billing takes the events that Billing applied.
func (r *Recorder) Billing(batch []events.Invalidation) { r.note(&r.billing, batch, r.appliedBy) }

func (r *Recorder) note(p *party, batch []events.Invalidation, each func(rotation int)) {
	now := time.Since(r.began).Nanoseconds()
	for k := range batch {
		e := &batch[k]
		if e.Event == events.ServiceBinding {
			p.bindings.Add(1)
			continue
		}
		i, ok := r.load.rotation(e)
		if !ok {
			r.foreign.Add(1)
			continue
		}
		nonce := maphash.String(r.seed, e.Nonce.String())
		switch {
		case p.at[i] == 0:
			p.at[i], p.nonces[i] = now, nonce
			p.distinct.Add(1)
			each(i)
		case p.nonces[i] != nonce:
			p.doubled.Add(1)
		default: // the same event again: a redelivery, which had no effect
		}
	}
}

func (r *Recorder) appliedBy(rotation int) {
	if r.left[rotation].Add(-1) > 0 {
		return
	}
	if r.released != nil {
		r.released <- struct{}{} // there is room: each was taken before
	}
	if r.applied.Add(1) == int64(r.load.Rotations) {
		close(r.done)
	}
}

// Lost returns how many rotations are not committed, or not applied by both.
func (r *Recorder) Lost() int {
	lost := 0
	for i := range r.left {
		if r.committed.at[i] == 0 || r.auth.at[i] == 0 || r.billing.at[i] == 0 {
			lost++
		}
	}
	return lost
}

// Doubled returns how many events the three parties reported beyond one for each rotation.
func (r *Recorder) Doubled() int {
	return int(r.foreign.Load() + r.committed.doubled.Load() + r.auth.doubled.Load() + r.billing.doubled.Load())
}

// AppliedByAuth returns how many different events of this load Auth applied, including bindings.
func (r *Recorder) AppliedByAuth() int64 { return r.auth.bindings.Load() + r.auth.distinct.Load() }

// AppliedByBilling returns how many different events of this load Billing applied, including
// bindings.
func (r *Recorder) AppliedByBilling() int64 {
	return r.billing.bindings.Load() + r.billing.distinct.Load()
}

// Sample is one rotation that both subscribers applied.
type Sample struct {
	Applied time.Duration // since the measurement began
	Latency time.Duration // from publish to applied by both
}

// Samples returns all rotations that both applied, in the order in which they were applied.
func (r *Recorder) Samples(began time.Time) []Sample {
	samples := make([]Sample, 0, r.load.Rotations)
	begins := began.Sub(r.began).Nanoseconds()
	for i, published := range r.published {
		if r.auth.at[i] == 0 || r.billing.at[i] == 0 {
			continue
		}
		applied := max(r.auth.at[i], r.billing.at[i])
		samples = append(samples, Sample{time.Duration(applied - begins), time.Duration(applied - published)})
	}
	slices.SortFunc(samples, func(a, b Sample) int { return int(a.Applied - b.Applied) })
	return samples
}
