// Package inspect shows what a deployment knows and does: a service's record and history, and the
// messages as they come.
package inspect

import (
	"maps"
	"slices"
	"strings"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
)

// RecordText returns a service's record for people.
func RecordText(r events.ServiceRecord) printable.Composed {
	var w strings.Builder
	printable.Fprintf(&w, "%s.%s: %s, sequence %d, bound since %s\n", r.AppID, r.ServiceID, r.Status, r.Sequence, printable.Date(r.BoundAt))
	if !r.Current.PublicKey.IsZero() {
		printable.Fprintf(&w, "  current    %s  since %s\n", r.Current.PublicKey, printable.Date(r.Current.Since))
	}
	for _, key := range r.Grace {
		// The registry's clock counts, because it ends keys.
		left := time.Duration(key.Expires-r.Timestamp) * time.Second
		printable.Fprintf(&w, "  in grace   %s  %s left, until %s\n", key.PublicKey, left, printable.Date(key.Expires))
	}
	width := len("in grace  ")
	for durable := range r.Propagation {
		width = max(width, len(durable))
	}
	heard(&w, width, r.Propagation, "")
	heard(&w, width, r.OtherDurables, "; changes don't wait for it")
	if r.NextRotationAt > r.Timestamp {
		printable.Fprintf(&w, "  rotation   refused (rate_limited) until %s: its rotations for this minute are used up\n", printable.Date(r.NextRotationAt))
	}
	for _, line := range [][2]string{{"type", r.ServiceType}, {"endpoint", r.EndpointURL}} {
		if line[1] != "" {
			printable.Fprintf(&w, "  %-10s %s\n", line[0], line[1])
		}
	}
	return printable.Composed(w.String())
}

// heard lists which durables have applied the last change.
func heard(w *strings.Builder, width int, durables map[string]bool, note string) {
	for _, durable := range slices.Sorted(maps.Keys(durables)) {
		has := "has not applied the last change yet"
		if durables[durable] {
			has = "has applied the last change"
		}
		printable.Fprintf(w, "  %-*s %s%s\n", width, durable, has, note)
	}
}
