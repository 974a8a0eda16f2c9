package client

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/internal/consume"
)

// TestProgress: the stream is known up to a question once all that it found was worked off, and never earlier.
func TestProgress(t *testing.T) {
	t.Parallel()
	var p streamProgress
	ask := func(what string, asked int64, delivered, pending uint64, want int64) {
		t.Helper()
		info := &jetstream.ConsumerInfo{Name: "a", NumPending: pending, Delivered: jetstream.SequenceInfo{Consumer: delivered}}
		p.answered(info, time.Unix(asked, 0))
		if got := unixSeconds(p.asOf()); got != want {
			t.Errorf("%s: as of %d, want %d", what, got, want)
		}
	}
	worked := func(what string, seen uint64, want int64) {
		t.Helper()
		p.workedOff(&consume.Plain{Delivery: seen, Sequence: 10 * seen})
		if got := unixSeconds(p.asOf()); got != want {
			t.Errorf("%s: as of %d, want %d", what, got, want)
		}
	}
	p.begin("a")
	ask("a long read begins", 100, 0, 5, 0)
	worked("some of it", 4, 0)
	ask("more has come meanwhile", 110, 6, 1, 0)
	worked("all that the first question found", 5, 100)
	ask("a busy stream", 120, 8, 1, 100)
	worked("most of it", 8, 100)
	ask("it never rests", 130, 10, 1, 100)
	worked("all that the question before found", 9, 120)
	worked("and more", 11, 120)
	ask("nothing is left", 140, 11, 0, 140)
	ask("a clock that was set back", 90, 11, 0, 140)
	ask("a message that was delivered and has not come", 150, 12, 0, 140)

	p.begin("b")
	ask("a late answer about the consumer before", 160, 0, 0, 140)
	p.begin("a")
	worked("a new consumer counts from 1, and forgets the question to the old one", 12, 140)
	if last := p.place(); last.sequence != 120 {
		t.Errorf("it would go on at %d", last.sequence)
	}
}

func TestStalled(t *testing.T) {
	t.Parallel()
	var p streamProgress
	p.begin("a")
	for i := range stallsAllowed {
		if p.stalled() {
			t.Errorf("given up after %d questions", i+1)
		}
	}
	p.workedOff(&consume.Plain{Delivery: 1})
	for range stallsAllowed {
		if p.stalled() {
			t.Error("given up, though something came")
		}
	}
	if !p.stalled() {
		t.Error("nothing comes any more, and it isn't noticed")
	}
}

// TestAge: a monotonic clock that stood still does not make knowledge young.
func TestAge(t *testing.T) {
	t.Parallel()
	now := time.Now()
	wall := now.Round(0)
	for name, tc := range map[string]struct {
		then, now time.Time
		want      time.Duration
	}{
		"both clocks":                     {now, now.Add(time.Minute), time.Minute},
		"the wall clock alone":            {wall, wall.Add(time.Minute), time.Minute},
		"since the machine went to sleep": {now, wall.Add(time.Hour), time.Hour},
	} {
		if got := knownFor(tc.then, tc.now); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
