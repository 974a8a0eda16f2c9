package bench

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
	"time"

	"omiappreg.org/keyrotation/internal/printable"
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

// axis maps values to pixels.
type axis struct {
	from, to   float64
	start, end int
	log        bool
}

func (a axis) at(value float64) float64 {
	from, to := a.from, a.to
	if a.log {
		value, from, to = math.Log10(value), math.Log10(from), math.Log10(to)
	}
	return float64(a.start) + (value-from)/(to-from)*float64(a.end-a.start)
}

// marks returns round values on the axis.
func (a axis) marks() []float64 {
	var marks []float64
	if a.log {
		for mark := a.from; mark <= a.to*1.001; mark *= 10 {
			marks = append(marks, mark)
		}
		return marks
	}
	step := math.Pow10(int(math.Floor(math.Log10(a.to - a.from))))
	switch n := (a.to - a.from) / step; {
	case n < 2:
		step /= 5
	case n < 5:
		step /= 2
	}
	for i := 0; a.from+float64(i)*step <= a.to; i++ {
		marks = append(marks, a.from+float64(i)*step)
	}
	return marks
}

func grid(s *strings.Builder, x, y axis, name, below string) {
	for _, mark := range y.marks() {
		fmt.Fprintf(s, `<line x1="%d" x2="%d" y1="%.1f" y2="%[3]f" stroke="#e5e5e5"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			x.start, x.end, y.at(mark), x.start-6, y.at(mark)+4, number(mark))
	}
	for _, mark := range x.marks() {
		fmt.Fprintf(s, `<line x1="%.1f" x2="%[1]f" y1="%d" y2="%d" stroke="#333"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
			x.at(mark), y.start, y.start+4, x.at(mark), y.start+17, number(mark))
	}
	middle := (y.start + y.end) / 2
	fmt.Fprintf(s, `<path d="M%d %dV%dH%d" fill="none" stroke="#333"/><text x="18" y="%d" text-anchor="middle" transform="rotate(-90 18 %d)">%s</text>`+"\n",
		x.start, y.end, y.start, x.end, middle, middle, name)
	fmt.Fprintf(s, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (x.start+x.end)/2, y.start+36, below)
}

// number formats a mark: 0.1, 5, 20, 5000.
func number(v float64) string { return fmt.Sprintf("%.10g", v) }

// curve draws a line through points. The two functions give their values on x and y.
func curve[T any](s *strings.Builder, list []T, x, y axis, color string, along, of func(T) float64) {
	fmt.Fprintf(s, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="`, color)
	for _, one := range list {
		fmt.Fprintf(s, "%.1f,%.1f ", x.at(along(one)), y.at(of(one)))
	}
	s.WriteString("\"/>\n")
}

// decades returns a logarithmic axis from the power of ten below low to the one above high.
func decades(low, high float64, start, end int) axis {
	return axis{
		from: math.Pow10(int(math.Floor(math.Log10(low)))), to: math.Pow10(int(math.Ceil(math.Log10(high * 1.001)))),
		start: start, end: end, log: true,
	}
}

// begin begins a drawing.
func begin(s *strings.Builder, title string) {
	fmt.Fprintf(s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="white"/>
<text x="%d" y="22" font-size="14">%s</text>
`, plotWidth, plotHeight, plotLeft, html.EscapeString(title))
}

// legend names a curve. The names of one panel stand next to each other, from the right.
func legend(s *strings.Builder, place, y int, name, color string) {
	fmt.Fprintf(s, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", plotWidth-plotRight-40*(place+1), y, color, name)
}

// Point is the result of one run with a number of services.
type Point struct {
	Services int
	CPU      float64 // µs for each rotation
	Rate     float64 // rotations/s
	P50, P99 float64 // ms
}

// least is the lowest latency that is drawn, in ms: 0 has no place on a logarithmic axis.
const least = 0.001

func (p Point) services() float64 { return float64(p.Services) }

// PlotGrowth draws cost and latency over the number of services as SVG. The points are sorted by
// that number.
func PlotGrowth(title string, points []Point) []byte {
	var s strings.Builder
	begin(&s, title)
	few, many, low, high, cost := math.Inf(1), 0.0, math.Inf(1), 0.0, 0.0
	for _, p := range points {
		few, many = min(few, p.services()), max(many, p.services())
		low, high, cost = min(low, p.P50), max(high, p.P99), max(cost, p.CPU)
	}
	x := decades(few, many, plotLeft, plotWidth-plotRight)
	cpu := axis{from: 0, to: cost * 1.1, start: latencyTop + latencyHeight, end: latencyTop}
	latency := decades(max(least, low), max(least, high), rateTop+rateHeight, rateTop)
	grid(&s, x, cpu, "CPU a rotation (µs)", "")
	grid(&s, x, latency, "latency (ms)", "services")
	curve(&s, points, x, cpu, "#1b9e77", Point.services, func(p Point) float64 { return p.CPU })
	for i, line := range []struct {
		name, color string
		of          func(Point) float64
	}{
		{"p99", "#d95f02", func(p Point) float64 { return max(least, p.P99) }},
		{"p50", "#1b6ca8", func(p Point) float64 { return max(least, p.P50) }},
	} {
		curve(&s, points, x, latency, line.color, Point.services, line.of)
		legend(&s, i, rateTop-10, line.name, line.color)
	}
	s.WriteString("</svg>\n")
	return []byte(s.String())
}

// plotted draws one run over time, or several runs over their numbers of services.
func plotted(runs []*run) []byte {
	first := runs[0]
	if len(runs) == 1 {
		return Plot(first.result.loadText(), first.samples)
	}
	points := make([]Point, 0, len(runs))
	for _, b := range runs {
		r := &b.result
		points = append(points, Point{
			Services: r.Services + r.Preloaded, CPU: r.CPUPerRotation, Rate: r.RotationsPerS,
			P50: r.PublishToApplied.P50, P99: r.PublishToApplied.P99,
		})
	}
	alone := first.result
	alone.Preloaded = 0
	return PlotGrowth(alone.loadText(), points)
}

// growthText says, for people, what changes with the number of services.
func growthText(runs []*run) string {
	var s strings.Builder
	printable.Fprintf(&s, "%12s  %12s  %12s  %10s  %10s  %12s  %10s\n", "services", "rotations/s", "CPU (µs)", "p50 (ms)", "p99 (ms)", "share", "memory (MB)")
	for _, b := range runs {
		r := &b.result
		printable.Fprintf(&s, "%12d  %12.0f  %12.0f  %10.2f  %10.2f  %10.1f %%  %10.0f\n", r.Services+r.Preloaded, r.RotationsPerS,
			r.CPUPerRotation, r.PublishToApplied.P50, r.PublishToApplied.P99, 100*r.ShareOfLimit, r.RSS)
	}
	return s.String()
}
