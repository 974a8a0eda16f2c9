package bench_test

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/bench"
)

func TestPlot(t *testing.T) {
	t.Parallel()
	even := make([]bench.Sample, 2000)
	for i := range even {
		even[i] = bench.Sample{Applied: time.Duration(i) * 5 * time.Millisecond, Latency: time.Duration(i%40+1) * 100 * time.Microsecond}
	}
	for name, samples := range map[string][]bench.Sample{
		"one": even[3:4], "few": even[:7], "many": even,
		"a latency of zero": {{Applied: time.Second}},
		"all at once":       {{0, time.Millisecond}, {0, time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drawing := string(bench.Plot("load & more", samples))
			drawable(t, drawing)
			for _, text := range []string{"load &amp; more", "(ms)", "time since the start (s)", "rotations a second", "p50", "p99", "max"} {
				if !strings.Contains(drawing, ">"+text) && !strings.Contains(drawing, text+"<") {
					t.Errorf("it does not say %q", text)
				}
			}
			if n := strings.Count(drawing, "<polyline"); n != 4 {
				t.Errorf("%d curves", n)
			}
		})
	}
}

// TestPlotGrowth: it also works if all values are the same, or too small to be measured.
func TestPlotGrowth(t *testing.T) {
	t.Parallel()
	for name, points := range map[string][]bench.Point{
		"growing": {{1000, 200, 6000, 1.7, 5.2}, {10_000, 210, 5900, 1.8, 5.5}, {1_000_000, 230, 5500, 2, 6}},
		"one":     {{1000, 200, 6000, 1.7, 5.2}},
		"equal":   {{100, 1, 1, 1, 1}, {100, 1, 1, 1, 1}},
		"zero":    {{1, 0.1, 0, 0, 0}, {10, 0.1, 0, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drawing := string(bench.PlotGrowth("load", points))
			drawable(t, drawing)
			for _, text := range []string{"CPU a rotation (µs)", "latency (ms)", "services", "p50", "p99"} {
				if !strings.Contains(drawing, ">"+text+"<") {
					t.Errorf("it does not say %q", text)
				}
			}
			if n := strings.Count(drawing, "<polyline"); n != 3 {
				t.Errorf("%d curves", n)
			}
		})
	}
}

// drawable checks that a drawing is XML, and that every place in it is a number.
func drawable(t *testing.T, drawing string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(drawing))
	for _, err := d.Token(); !errors.Is(err, io.EOF); _, err = d.Token() {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{"NaN", "Inf", "%!"} {
		if strings.Contains(drawing, bad) {
			t.Errorf("it has a %s", bad)
		}
	}
}
