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
			d := xml.NewDecoder(strings.NewReader(drawing))
			for _, err := d.Token(); !errors.Is(err, io.EOF); _, err = d.Token() {
				if err != nil {
					t.Fatal(err)
				}
			}
			for _, text := range []string{"load &amp; more", "(ms)", "time since the start (s)", "rotations a second", "p50", "p99", "max"} {
				if !strings.Contains(drawing, ">"+text) && !strings.Contains(drawing, text+"<") {
					t.Errorf("it does not say %q", text)
				}
			}
			if n := strings.Count(drawing, "<polyline"); n != 4 {
				t.Errorf("%d curves", n)
			}
			for _, bad := range []string{"NaN", "Inf", "%!"} {
				if strings.Contains(drawing, bad) {
					t.Errorf("it has a %s", bad)
				}
			}
		})
	}
}
