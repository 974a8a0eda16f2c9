package bench

import (
	"strings"

	"omiappreg.org/keyrotation/internal/printable"
)

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
