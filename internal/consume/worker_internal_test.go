package consume

import (
	"slices"
	"testing"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/nats-io/nats.go/jetstream"
)

// TestCopiesInABatch: a copy of a message in the batch, or of a suspect, is ignored, in whichever
// order the two were delivered. Nothing else is ignored: a message that was delivered before may be
// here for the first time.
func TestCopiesInABatch(t *testing.T) {
	t.Parallel()
	settled, err := lru.New[uint64, struct{}](8)
	if err != nil {
		t.Fatal(err)
	}
	message := func(sequence, delivered uint64) *Message {
		meta := &jetstream.MsgMetadata{NumDelivered: delivered}
		meta.Sequence.Stream = sequence
		return &Message{Meta: meta, settled: settled}
	}
	arrived := make(chan *Message, 20)
	w := newWorker(Config{Batch: 20}.withDefaults(), arrived, nil, 0)
	w.suspect(message(9, 1))
	for range 2 { // the last batch doesn't count
		for _, m := range [][2]uint64{{1, 2}, {1, 3}, {2, 1}, {2, 2}, {9, 2}, {1, 4}, {3, 7}, {3, 8}, {4, 1}} {
			arrived <- message(m[0], m[1])
		}
		batch, _ := w.next(t.Context(), nil)
		var got []uint64
		for _, m := range batch {
			got = append(got, m.Meta.Sequence.Stream)
		}
		if want := []uint64{1, 2, 3, 4}; !slices.Equal(got, want) {
			t.Errorf("the batch has %v, want %v", got, want)
		}
	}
}
