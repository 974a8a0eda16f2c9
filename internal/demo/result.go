package demo

import (
	"fmt"
	"slices"
	"time"

	"omiappreg.org/keyrotation/internal/printable"
)

// result is the demo's result for programs.
type result struct {
	Rotations        int            `json:"rotations"`
	MasterResets     int            `json:"master_resets"`
	Verified         int64          `json:"verified"`
	WronglyRefused   int64          `json:"wrongly_refused"`
	WronglyAccepted  int64          `json:"wrongly_accepted"`
	RejectedRequests map[string]int `json:"rejected_requests"`
	RepeatedRequests int            `json:"repeated_requests"`
	PublishToApplied milliseconds   `json:"publish_to_applied_ms"`
}

type milliseconds struct {
	P50 float64 `json:"p50"`
	Max float64 `json:"max"`
}

func (d *demo) result() result {
	slices.Sort(d.applied)
	return result{
		Rotations: d.rotations, MasterResets: d.resets, Verified: d.tally.verified.Load(),
		WronglyRefused: d.tally.wronglyRefused.Load(), WronglyAccepted: d.tally.wronglyAccepted.Load(),
		RejectedRequests: d.rejected, RepeatedRequests: d.repeated,
		PublishToApplied: milliseconds{P50: inMilliseconds(d.applied[len(d.applied)/2]), Max: inMilliseconds(d.applied[len(d.applied)-1])},
	}
}

func inMilliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func (d *demo) summary() {
	r := d.result()
	printable.Fprintf(d.out, `
Summary
  rotations                                 %d, and %d Master Reset
  requests verified during them             %d
  refused while they should pass:           %d
  accepted while they should be refused:    %d   (the intruder was refused %d times)
  rejected rotation requests                %s
  from publish to applied by both           p50 %.2f ms, max %.2f ms
  time                                      %.1f s
`, r.Rotations, r.MasterResets, r.Verified, r.WronglyRefused, r.WronglyAccepted, d.tally.refused.Load(),
		reasons(r.RejectedRequests), r.PublishToApplied.P50, r.PublishToApplied.Max, time.Since(d.began).Seconds())
}

func reasons(counted map[string]int) string {
	var list []string
	for reason, n := range counted {
		list = append(list, fmt.Sprintf("%s %d", reason, n))
	}
	slices.Sort(list)
	return fmt.Sprint(list)
}
