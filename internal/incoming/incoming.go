// Package incoming sorts the messages of the stream of invalidations: events that a trusted
// registry key signed about the service in their subject, and messages that must not be applied
// (docs/protocol.md §7.2).
package incoming

import (
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/parallel"
	"omiappreg.org/keyrotation/internal/printable"
)

// Delivery is one message of the stream.
type Delivery struct {
	Subject   string
	Payload   []byte
	Sequence  uint64    // in the stream
	Published time.Time // when JetStream stored it
}

// Of returns a message as it was delivered.
func Of(m *consume.Plain) Delivery {
	return Delivery{m.Subject, m.Data, m.Sequence, m.Stored}
}

// Batch returns messages as they were delivered.
func Batch(messages []*consume.Plain) []Delivery {
	batch := make([]Delivery, len(messages))
	for i, m := range messages {
		batch[i] = Of(m)
	}
	return batch
}

// Sorted is a batch, divided into events to apply and messages to refuse.
type Sorted struct {
	Events    []events.Invalidation
	Published []time.Time // for each of Events
	Refused   []Refused
}

// Refused is a message that must not be applied, and the reason.
type Refused struct {
	Delivery
	*events.Refusal
}

const (
	// most is how many messages a core takes at a time: it checks parts of 64 together, in the same
	// memory.
	most = 256
	// least is how many messages are worth a goroutine: half a millisecond of work.
	least = 16
)

// Sort checks a batch, on as many cores as the work is worth.
func Sort(trust events.Trust, batch []Delivery) Sorted {
	size := shareOf(len(batch), runtime.GOMAXPROCS(0))
	shares := slices.Collect(slices.Chunk(batch, size))
	verdicts := make([][]events.Verdict, len(shares))
	parallel.Each(len(shares), 1, func(i int) {
		published := make([]events.Published, len(shares[i]))
		for n, d := range shares[i] {
			published[n] = events.Published{Subject: d.Subject, Payload: d.Payload, Stored: d.Published, Place: d.Sequence}
		}
		verdicts[i] = trust.Invalidations(published)
	})
	out := Sorted{Events: make([]events.Invalidation, 0, len(batch)), Published: make([]time.Time, 0, len(batch))}
	for i, share := range shares {
		for n, v := range verdicts[i] {
			if v.Err != nil {
				out.Refused = append(out.Refused, Refused{share[n], refusalOf(v.Err)})
				continue
			}
			out.Events = append(out.Events, v.Event)
			out.Published = append(out.Published, share[n].Published)
		}
	}
	return out
}

// shareOf divides n messages evenly: into one share for each core, into more if the shares would be
// too large, or into fewer if they would be too small.
func shareOf(n, cores int) int {
	share := min(max((n+cores-1)/cores, least), most)
	shares := max((n+share-1)/share, 1)
	return max((n+shares-1)/shares, 1)
}

// refusalOf returns why a message must not be applied. [events.Trust.Invalidation] has no other
// errors.
func refusalOf(err error) *events.Refusal {
	if refusal := (*events.Refusal)(nil); errors.As(err, &refusal) {
		return refusal
	}
	return &events.Refusal{Reason: events.MalformedMessage, Detail: err.Error()}
}

// Refusals are the messages of a batch that share a reason.
type Refusals struct {
	Reason events.Reason
	Count  int
	First  Refused
}

// ByReason counts the refused messages for one line in the log for each reason: a flood of garbage
// must not become a flood of lines.
func (s *Sorted) ByReason() []Refusals {
	var list []Refusals
	for _, r := range s.Refused {
		i := slices.IndexFunc(list, func(have Refusals) bool { return have.Reason == r.Reason })
		if i < 0 {
			i = len(list)
			list = append(list, Refusals{Reason: r.Reason, First: r})
		}
		list[i].Count++
	}
	return list
}

// Log returns a logger for the line about them.
func (r Refusals) Log(log *slog.Logger) *slog.Logger {
	return log.With("reason", string(r.Reason), "detail", r.First.Detail, "count", r.Count,
		"first_subject", printable.Text(r.First.Subject), "first_stream_sequence", r.First.Sequence)
}
