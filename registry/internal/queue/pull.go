package queue

import (
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// pull takes what the broker delivers, until the context or the broker's iterator ends.
func (s *source) pull() {
	defer close(s.pulled)
	defer s.iterator.Close()
	for {
		s.room()
		msg, err := s.iterator.Next()
		if err == nil {
			err = s.receive(msg)
		}
		if err != nil {
			s.end(err)
			return
		}
	}
}

// room waits until another message may wait here.
func (s *source) room() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.waiting+s.unsorted >= waitingAll && s.ctx.Err() == nil {
		s.changed.Wait()
	}
}

// end lets Next return, and gives back what waits. Giving back is best effort: the broker finds out
// anyway.
func (s *source) end(err error) {
	s.mu.Lock()
	s.err = err
	waiting := s.toSort
	s.toSort = nil
	for _, sq := range s.queues {
		waiting = append(waiting, sq.waiting...)
		sq.waiting = nil
	}
	s.queues, s.ready, s.waiting = map[events.Target]*serviceQueue{}, nil, 0
	s.here = map[uint64]*item{}
	s.changed.Broadcast()
	s.mu.Unlock()
	<-s.sorter
	for _, it := range waiting {
		_ = it.broker.NakWithDelay(0)
	}
}

// receive puts a message into its queue, unless it is garbage beyond the budget or must be sorted
// first.
func (s *source) receive(msg jetstream.Msg) error {
	it, err := newItem(s, msg)
	if err != nil {
		return err
	}
	if it.message.Delivery <= s.delivered {
		return consume.ErrReplaced // it may be another stream, which counts from 1 again
	}
	s.delivered = it.message.Delivery
	target, most := it.target(), inHandEach
	if target.IsZero() {
		most = inHandGarbage
	}
	switch {
	case it.parsed() != nil && it.parsed().Request == nil:
		s.drop(it, Unanswerable)
		return nil
	case it.garbage() && !s.pay(it):
		return nil
	}
	if !s.sortFirst(it) {
		s.enqueue(it, target, most)
	}
	return nil
}

// enqueue puts a message into a queue, unless the queue is full.
func (s *source) enqueue(it *item, target events.Target, most int) {
	full, after := s.add(it, target, most)
	switch {
	case full && target.IsZero():
		s.drop(it, unanswered)
	case full:
		s.sentBack.Inc()
		_ = it.broker.NakWithDelay(after) // if this fails, it returns sooner
	}
}

// add puts a message into its queue. If the queue is full, it returns after which time the message
// may return.
func (s *source) add(it *item, target events.Target, most int) (full bool, after time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.here[it.message.Sequence] != nil {
		return false, 0 // a copy came meanwhile
	}
	if s.err != nil { // the queue ended meanwhile
		_ = it.broker.NakWithDelay(0) // as in end
		return false, 0
	}
	sq := s.queues[target]
	if sq == nil {
		sq = &serviceQueue{target: target, most: most}
		s.queues[target] = sq
	}
	if len(sq.waiting) >= waitingEach {
		return true, s.returnAfter(time.Now())
	}
	it.queue, s.here[it.message.Sequence] = sq, it
	sq.waiting = append(sq.waiting, it)
	s.waiting++
	s.lineUp(sq)
	return false, 0
}

// returnAfter returns the delay for one more message that goes back. The caller holds s.mu.
func (s *source) returnAfter(now time.Time) time.Duration {
	if first := now.Add(returnFirst); s.returns.Before(first) {
		s.returns = first
	}
	s.returns = s.returns.Add(time.Second / returnRate)
	return s.returns.Truncate(returnEach).Sub(now)
}

// pay charges a message's answer to the budget for garbage, and reports whether that was possible.
// Otherwise the message gets no answer, and is acknowledged.
func (s *source) pay(it *item) bool {
	if it.message.Payload.Paid = s.Charge(); !it.message.Payload.Paid {
		_ = it.broker.Ack() // as in drop
	}
	return it.message.Payload.Paid
}

// drop acknowledges garbage that gets no answer.
func (s *source) drop(it *item, why string) {
	_ = it.broker.Ack() // if this fails, it is delivered again
	s.budget.drop(why)
}

// keep tells the broker in time that waiting messages and those in hand are still ours, and logs
// what was dropped.
func (s *source) keep() {
	ticker := time.NewTicker(extendEach)
	defer ticker.Stop()
	for {
		select {
		case <-s.pulled:
			return
		case now := <-ticker.C:
			for _, it := range s.due(now) {
				_ = it.InProgress() // it may have been finished just now
			}
			s.tell(s.cfg.Log)
		}
	}
}

// due returns the messages that the broker has not heard of for a while.
func (s *source) due(now time.Time) (due []*item) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, it := range s.here {
		if now.Sub(it.since) >= extendEach/2 {
			it.since = now
			due = append(due, it)
		}
	}
	return due
}

// Message is a request on its way from the fair queue to the decision.
type Message = consume.Message[Request]

// Request is what is known of a request before it is handled.
type Request struct {
	// Parsed is the request. It is nil if it is not parsed yet, or if parsing it panics, which the
	// handler will find out.
	Parsed      *decision.Incoming
	Place       decision.Place // in its stream
	Redelivered bool           // it may have been answered
	Paid        bool           // its answer needs nothing of the budget for garbage any more
}

// item is a message of the request stream that waits for its turn or is in hand. When it is
// finished, the next one of its queue may go on.
type item struct {
	message Message
	broker  consume.Acknowledger
	request decision.Incoming

	source *source
	queue  *serviceQueue
	since  time.Time // when the broker last heard that we are at it

	// follows: others of its service were in their queue when it was sorted; one of them may be the
	// binding.
	follows bool
}

func newItem(s *source, msg jetstream.Msg) (*item, error) {
	m, err := consume.NewMessage[Request](msg)
	if err != nil {
		return nil, err
	}
	it := &item{message: m, broker: msg, source: s, since: time.Now()}
	it.message.Acknowledger = it
	it.message.Payload.Place = decision.Place{Stream: s.created, Sequence: int64(m.Sequence)}
	// It may have been answered if it was stored before this durable was created, because another
	// durable may have delivered it.
	it.message.Payload.Redelivered = m.Delivered > 1 || m.Stored.Before(s.since)
	it.parse()
	return it, nil
}

func (it *item) parse() {
	defer func() { _ = recover() }()
	it.request = decision.NewIncoming(it.message.Subject, it.message.Data, it.message.Stored.Unix(), 0)
	it.message.Payload.Parsed = &it.request
}

// parsed returns the request; nil: parsing it panics.
func (it *item) parsed() *decision.Incoming { return it.message.Payload.Parsed }

// target returns the service whose queue the message waits in. It is zero for garbage, and if the
// service is not known.
func (it *item) target() events.Target {
	if in := it.parsed(); in == nil || in.Request == nil || it.garbage() {
		return events.Target{}
	}
	return it.request.Request.Target
}

// garbage reports whether no client can have sent the message: it has no nonce by which an answer
// could be told from others.
func (it *item) garbage() bool {
	in := it.parsed()
	return in != nil && in.Refusal != nil && in.Request.Nonce.IsZero()
}

// Ack implements [consume.Acknowledger].
func (it *item) Ack() error {
	defer it.source.finish(it)
	return it.broker.Ack()
}

// NakWithDelay implements [consume.Acknowledger].
func (it *item) NakWithDelay(delay time.Duration) error {
	defer it.source.finish(it)
	return it.broker.NakWithDelay(delay)
}

// TermWithReason implements [consume.Acknowledger].
func (it *item) TermWithReason(reason string) error {
	defer it.source.finish(it)
	return it.broker.TermWithReason(reason)
}

// InProgress implements [consume.Acknowledger].
func (it *item) InProgress() error { return it.broker.InProgress() }
