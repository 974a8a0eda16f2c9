package consume

import (
	"context"
	"slices"
	"testing"
	"time"
)

// fakeSource has the messages that a test puts into it.
type fakeSource chan *Plain

// Next implements [Source].
func (f fakeSource) Next(_ context.Context, batch []*Plain, limit int) ([]*Plain, error) {
	for len(f) > 0 && len(batch) < limit {
		batch = append(batch, <-f)
	}
	return batch, nil
}

// AckWait implements [Source].
func (f fakeSource) AckWait() time.Duration { return 0 }

// Close implements [Source].
func (f fakeSource) Close() {}

// TestCopiesInABatch: a copy of a message in the batch, or of a suspect, is ignored, in whichever
// order the two were delivered. Nothing else is ignored: a message that was delivered before may be
// here for the first time.
func TestCopiesInABatch(t *testing.T) {
	t.Parallel()
	message := func(sequence, delivered uint64) *Plain { return &Plain{Sequence: sequence, Delivered: delivered} }
	arrived := make(fakeSource, 20)
	w := newWorker(Config[struct{}]{Batch: 20}.withDefaults(), arrived)
	w.suspect(message(9, 1))
	for range 2 { // the last batch doesn't count
		for _, m := range [][2]uint64{{1, 2}, {1, 3}, {2, 1}, {2, 2}, {9, 2}, {1, 4}, {3, 7}, {3, 8}, {4, 1}} {
			arrived <- message(m[0], m[1])
		}
		batch, _ := w.next(t.Context(), nil)
		var got []uint64
		for _, m := range batch {
			got = append(got, m.Sequence)
		}
		if want := []uint64{1, 2, 3, 4}; !slices.Equal(got, want) {
			t.Errorf("the batch has %v, want %v", got, want)
		}
	}
}
