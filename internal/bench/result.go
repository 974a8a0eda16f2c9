package bench

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"time"

	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/stack"
	"omiappreg.org/keyrotation/streams"
)

// result is the result for programs.
type result struct {
	RotationsPerS    float64   `json:"rotations_per_s"`
	PublishToApplied quantiles `json:"publish_to_applied_ms"`
	// µs, of all parts and of a database server that this process started
	CPUPerRotation float64 `json:"cpu_us_per_rotation"`
	Ed25519Limit   float64 `json:"ed25519_limit_per_s"` // rotations
	ShareOfLimit   float64 `json:"share_of_limit"`      // of 1
	Lost           int     `json:"lost"`
	Doubled        int     `json:"doubled"`
	// the highest while measuring, of this process, 10^6 bytes
	RSS        float64 `json:"rss_mb"`
	Store      string  `json:"store"`
	Mode       string  `json:"mode"`
	SyncAlways bool    `json:"sync_always,omitzero"`
	Rate       float64 `json:"rate_per_s,omitzero"`
	InFlight   int     `json:"in_flight,omitzero"`
	Services   int     `json:"services"`
	Preloaded  int     `json:"preloaded"`
	Rotations  int     `json:"rotations"`
	Seconds    float64 `json:"seconds"`
	Cores      int     `json:"cores"`
	// the registry's limit for each service; absent: off
	RotationsPerMinute int `json:"rotations_per_minute,omitzero"`
	// of the slower one of Auth and Billing, alone and from an empty database
	CatchUp float64 `json:"catch_up_events_per_s"`
	// CPUByStage is µs for each rotation, by part of the process and by purpose.
	CPUByStage map[string]map[string]float64 `json:"cpu_us_by_stage"`
}

type quantiles struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// conclude waits until nothing is under way, and makes the result.
func (b *run) conclude(ctx context.Context, limit, caughtUp float64, m measured) error {
	b.progress.phase("counting", -1)
	if err := b.awaitAcknowledged(ctx); err != nil {
		return err
	}
	for _, stop := range b.stops { // their reports are complete
		stop()
	}
	b.samples = b.recorder.Samples(m.began)
	if len(b.samples) == 0 {
		b.why = b.refusals()
		return fmt.Errorf("no rotation was applied by both subscribers within %s%s", stalledAfter, b.why)
	}
	doubled, err := b.doubled(ctx)
	if err != nil {
		return err
	}
	n, elapsed := float64(len(b.samples)), b.samples[len(b.samples)-1].Applied
	process, server := float64(m.cpu.Microseconds())/n, float64(m.server.Microseconds())/n
	b.result = result{
		RotationsPerS: round(n/elapsed.Seconds(), 1), PublishToApplied: latencies(b.samples),
		CPUPerRotation: round(process+server, 1), Ed25519Limit: round(limit, 1), ShareOfLimit: round(n/elapsed.Seconds()/limit, 3),
		Lost: b.recorder.Lost(), Doubled: doubled, RSS: round(float64(m.peak)/1e6, 1), Store: b.store,
		Mode: b.flags.mode(), SyncAlways: b.flags.SyncAlways, Rate: b.flags.Rate, InFlight: b.flags.InFlight, Services: b.flags.Services, Preloaded: b.preload,
		Rotations: b.flags.Rotations, Seconds: round(elapsed.Seconds(), 3), Cores: runtime.GOMAXPROCS(0),
		RotationsPerMinute: max(0, b.rateLimit()), CatchUp: round(caughtUp, 0),
	}
	if b.result.Lost > 0 {
		b.why = b.refusals()
	}
	b.result.CPUByStage, err = b.stages(process, server)
	return err
}

func (b *run) rateLimit() int {
	policy, _ := b.cfg.Policy.WithDefaults() // it was valid when it was served
	return policy.RotationsPerMinute
}

// awaitAcknowledged waits until the subscribers have acknowledged everything, so that every
// repetition has arrived.
func (b *run) awaitAcknowledged(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, acknowledgeWithin)
	defer cancel()
	for _, durable := range []string{stack.AuthDurable, streams.BillingDurable} {
		for {
			consumer, err := b.js.Consumer(ctx, streams.Invalidations, durable)
			if err != nil {
				return fmt.Errorf("look at the durable %s: %w", durable, err)
			}
			if info := consumer.CachedInfo(); info.NumPending == 0 && info.NumAckPending == 0 {
				break
			}
			if err := b.look(ctx, lookEvery, b.recorder.Applied); err != nil {
				return fmt.Errorf("wait for %s to acknowledge: %w", durable, err)
			}
		}
	}
	return nil
}

// doubled counts what happened more than once: events of one rotation, as the parties reported and
// as the stream counts them, and effects, as the subscribers' databases counted them.
func (b *run) doubled(ctx context.Context) (int, error) {
	stream, err := b.js.Stream(ctx, streams.Invalidations)
	if err != nil {
		return 0, fmt.Errorf("look at the stream of events: %w", err)
	}
	doubled := b.recorder.Doubled()
	published := int64(stream.CachedInfo().State.LastSeq)
	doubled += int(max(0, published-int64(b.load.Bindings()+b.load.Rotations)))
	applied, err := b.counted("omi_subscriber_events_total", "durable", "result", "applied")
	if err != nil {
		return 0, err
	}
	doubled += max(0, applied[stack.AuthDurable]-int(b.recorder.AppliedByAuth()))
	doubled += max(0, applied[streams.BillingDurable]-int(b.recorder.AppliedByBilling()))
	return doubled, nil
}

// refusals says which requests the registry refused, and why.
func (b *run) refusals() string {
	results, err := b.counted("omi_registry_requests_total", "result", "", "")
	if err != nil {
		return ""
	}
	delete(results, "committed")
	if len(results) == 0 {
		return ""
	}
	return fmt.Sprintf("; the registry answered %v", results)
}

// counted reads a counter by one of its labels, restricted to one value of another label unless its
// name is empty.
func (b *run) counted(name, by, where, value string) (map[string]int, error) {
	families, err := b.metrics.Gather()
	if err != nil {
		return nil, fmt.Errorf("read the metrics: %w", err)
	}
	counts := map[string]int{}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			labels := map[string]string{}
			for _, pair := range m.GetLabel() {
				labels[pair.GetName()] = pair.GetValue()
			}
			if labels[where] == value {
				counts[labels[by]] += int(m.GetCounter().GetValue())
			}
		}
	}
	return counts, nil
}

// stages splits the CPU by the profile.
func (b *run) stages(process, server float64) (map[string]map[string]float64, error) {
	stages, err := Shares(b.profile)
	if err != nil {
		return nil, err
	}
	for _, kinds := range stages {
		for kind, share := range kinds {
			kinds[kind] = round(share*process, 1)
		}
	}
	if server > 0 {
		stages[databaseServer] = map[string]float64{Store: round(server, 1)}
	}
	return stages, nil
}

// latencies returns the quantiles of samples.
func latencies(samples []Sample) quantiles {
	sorted := make([]time.Duration, len(samples))
	for i, s := range samples {
		sorted[i] = s.Latency
	}
	slices.Sort(sorted)
	at := func(share float64) float64 {
		return float64(sorted[max(0, int(math.Ceil(share*float64(len(sorted))))-1)].Microseconds()) / 1000
	}
	return quantiles{at(0.50), at(0.90), at(0.99), at(1)}
}

// round keeps this many digits after the point.
func round(x float64, digits int) float64 {
	scale := math.Pow10(digits)
	return math.Round(x*scale) / scale
}

// text returns the result for people.
func (r *result) text() string {
	var s strings.Builder
	line := func(name, format string, args ...any) {
		printable.Fprintf(&s, "%-26s"+format+"\n", append([]any{name}, args...)...)
	}
	line("load", "%s", r.loadText())
	line("rotations per second", "%.0f", r.RotationsPerS)
	line("from publish to applied", "p50 %.2f ms   p90 %.2f ms   p99 %.2f ms   max %.2f ms",
		r.PublishToApplied.P50, r.PublishToApplied.P90, r.PublishToApplied.P99, r.PublishToApplied.Max)
	line("the cores' Ed25519 limit", "%.0f a second: only three verifications and two signatures each, on %d cores", r.Ed25519Limit, r.Cores)
	line("share of it reached", "%.1f %%", 100*r.ShareOfLimit)
	line("CPU", "%.0f µs a rotation", r.CPUPerRotation)
	for _, part := range byTotal(r.CPUByStage, total) {
		line("  "+strings.ReplaceAll(part, "_", " "), "%6.1f µs   %s", total(r.CPUByStage[part]), kindsText(r.CPUByStage[part]))
	}
	line("lost, doubled", "%d, %d", r.Lost, r.Doubled)
	line("memory", "%.0f MB at most", r.RSS)
	line("catching up", "%.0f events a second, by the slower one of Auth and Billing, alone", r.CatchUp)
	return s.String()
}

func (r *result) loadText() string {
	text := fmt.Sprintf("%d rotations of %d services", r.Rotations, r.Services)
	if r.Preloaded > 0 {
		text += fmt.Sprintf(" among %d", r.Services+r.Preloaded)
	}
	switch r.Mode {
	case modeOpen:
		text += fmt.Sprintf(", %g a second", r.Rate)
	case modeClosed:
		text += fmt.Sprintf(", %d under way at a time", r.InFlight)
	default:
		text += " from a backlog; latencies count from the start of the registry"
	}
	if r.SyncAlways {
		text += "; sync_interval always"
	}
	return text + "; " + r.Store
}

func kindsText(kinds map[string]float64) string {
	var list []string
	for _, kind := range byTotal(kinds, func(v float64) float64 { return v }) {
		if kinds[kind] >= 0.05 {
			list = append(list, fmt.Sprintf("%s %.1f", strings.ReplaceAll(kind, "_", " "), kinds[kind]))
		}
	}
	return strings.Join(list, ", ")
}

func total(kinds map[string]float64) float64 {
	sum := 0.0
	for _, v := range kinds {
		sum += v
	}
	return sum
}

// byTotal returns the names in a map, ordered by their totals, the largest first.
func byTotal[V any](m map[string]V, of func(V) float64) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(of(m[b]), of(m[a])), cmp.Compare(a, b))
	})
}
