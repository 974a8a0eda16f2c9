package consume

import (
	"context"
	"time"
)

// Source starts to fetch messages into a source, until ctx ends. At most waiting of them wait
// there. accept is called for each message in the order of the stream; an error ends the source. A
// nil accept takes all of them.
func (p Pull) Source(ctx context.Context, waiting int, accept func(*Plain) error) (Source[struct{}], error) {
	ctx, stop := context.WithCancel(ctx)
	iterator, err := p.Start(ctx)
	if err != nil {
		stop()
		return nil, err
	}
	s := &pulled{
		arrived: make(chan *Plain, waiting), ended: make(chan struct{}), stop: stop,
		ackWait: p.consumer.CachedInfo().Config.AckWait,
	}
	go func() {
		defer close(s.ended)
		defer close(s.arrived)
		s.err = s.fill(ctx, iterator, accept)
	}()
	return s, nil
}

// pulled is a source whose messages come in the order of the stream.
type pulled struct {
	arrived chan *Plain
	ended   chan struct{} // closed when no more will arrive
	err     error         // why; set before that
	stop    context.CancelFunc
	ackWait time.Duration
}

// fill moves messages from the iterator to the channel until one of the two ends.
func (s *pulled) fill(ctx context.Context, iterator *Iterator, accept func(*Plain) error) error {
	defer iterator.Close()
	for {
		msg, err := iterator.Next()
		if err != nil {
			return err
		}
		m, err := NewMessage[struct{}](msg)
		if err != nil {
			return err
		}
		if iterator.unacknowledged {
			m.Acknowledger = noAcknowledger{}
		}
		if accept != nil {
			if err := accept(&m); err != nil {
				return err
			}
		}
		select {
		case s.arrived <- &m:
		case <-ctx.Done():
			_ = m.Nak() // as in Iterator.Close
			return context.Cause(ctx)
		}
	}
}

// Next implements [Source].
func (s *pulled) Next(ctx context.Context, batch []*Plain, limit int) ([]*Plain, error) {
	arrived, ended := s.arrived, (chan struct{})(nil)
	if limit == 0 {
		arrived, ended = nil, s.ended
	}
	select {
	case <-ctx.Done():
		return batch, nil
	case <-ended:
		return batch, s.err
	case m, ok := <-arrived:
		if !ok {
			return batch, s.err
		}
		batch = append(batch, m)
	}
	for len(batch) < limit {
		select {
		case m, ok := <-s.arrived:
			if !ok {
				return batch, nil
			}
			batch = append(batch, m)
		default:
			return batch, nil
		}
	}
	return batch, nil
}

// AckWait implements [Source].
func (s *pulled) AckWait() time.Duration { return s.ackWait }

// Close implements [Source].
func (s *pulled) Close() {
	s.stop()
	for m := range s.arrived {
		_ = m.Nak() // as in Iterator.Close
	}
	<-s.ended
}

// noAcknowledger is for messages that need no acknowledgement.
type noAcknowledger struct{}

// Ack implements [Acknowledger].
func (noAcknowledger) Ack() error { return nil }

// NakWithDelay implements [Acknowledger].
func (noAcknowledger) NakWithDelay(time.Duration) error { return nil }

// InProgress implements [Acknowledger].
func (noAcknowledger) InProgress() error { return nil }

// TermWithReason implements [Acknowledger].
func (noAcknowledger) TermWithReason(string) error { return nil }
