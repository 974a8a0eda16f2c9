package bench

import (
	"math"
	"strings"

	"omiappreg.org/keyrotation/internal/printable"
)

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
