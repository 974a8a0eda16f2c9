package bench

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
)

// The drawing, in pixels: one panel above the other, with the same time axis.
const (
	plotWidth, plotHeight = 900, 560
	plotLeft, plotRight   = 80, 20
	latencyTop            = 50
	latencyHeight         = 270
	rateTop               = 380
	rateHeight            = 120
	plotSlices            = 150 // of the time, at most
)

// slice holds the values of a part of the time.
type slice struct {
	at            float64 // s: its middle
	p50, p99, max float64 // ms
	rate          float64 // rotations/s
}

func (s slice) middle() float64 { return s.at }

// Plot draws latencies and throughput over time as SVG. The samples are in the order in which they
// were applied.
func Plot(title string, samples []Sample) []byte {
	var s strings.Builder
	begin(&s, title)
	span, list := sliced(samples)
	low, high, most := math.Inf(1), 0.0, 0.0
	for _, one := range list {
		low, high, most = min(low, one.p50), max(high, one.max), max(most, one.rate)
	}
	x := axis{from: 0, to: span, start: plotLeft, end: plotWidth - plotRight}
	latency := decades(low, high, latencyTop+latencyHeight, latencyTop)
	rate := axis{from: 0, to: most * 1.05, start: rateTop + rateHeight, end: rateTop}
	grid(&s, x, latency, "from publish to applied by both (ms)", "")
	grid(&s, x, rate, "rotations a second", "time since the start (s)")
	for i, line := range []struct {
		name, color string
		of          func(slice) float64
	}{
		{"max", "#bbbbbb", func(o slice) float64 { return o.max }},
		{"p99", "#d95f02", func(o slice) float64 { return o.p99 }},
		{"p50", "#1b6ca8", func(o slice) float64 { return o.p50 }},
	} {
		curve(&s, list, x, latency, line.color, slice.middle, line.of)
		legend(&s, i, latencyTop-10, line.name, line.color)
	}
	curve(&s, list, x, rate, "#1b9e77", slice.middle, func(o slice) float64 { return o.rate })
	s.WriteString("</svg>\n")
	return []byte(s.String())
}

// sliced returns the whole time in seconds, and the slices in which any rotation was applied.
func sliced(samples []Sample) (span float64, list []slice) {
	if len(samples) == 0 {
		return 1, nil
	}
	whole := max(samples[len(samples)-1].Applied, time.Millisecond)
	width := whole/time.Duration(min(plotSlices, max(1, len(samples)/10))) + 1
	for len(samples) > 0 {
		number := samples[0].Applied / width
		n := slices.IndexFunc(samples, func(s Sample) bool { return s.Applied/width != number })
		if n < 0 {
			n = len(samples)
		}
		part := slices.Clone(samples[:n])
		slices.SortFunc(part, func(a, b Sample) int { return cmp.Compare(a.Latency, b.Latency) })
		ms := func(i int) float64 { return max(least, float64(part[i].Latency.Microseconds())/1000) }
		list = append(list, slice{
			at: (float64(number) + 0.5) * width.Seconds(), p50: ms((n - 1) / 2), p99: ms((n - 1) * 99 / 100), max: ms(n - 1),
			rate: float64(n) / width.Seconds(),
		})
		samples = samples[n:]
	}
	return whole.Seconds(), list
}
