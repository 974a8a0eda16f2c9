// Package inspect shows what a deployment knows and does: a service's record and history, and the
// messages as they come.
package inspect

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
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

// PrintHistory prints every change of a service's keys as a table.
func PrintHistory(w io.Writer, h events.ServiceHistory) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SEQUENCE\tEVENT\tFROM\tUNTIL\tKEY")
	for _, change := range Changes(h) {
		until, key := "", "(all keys ended)"
		if !change.PublicKey.IsZero() {
			until, key = "current", change.PublicKey.String()
		}
		if change.Until != nil {
			until = printable.Date(*change.Until)
		}
		printable.Fprintf(table, "%d\t%s\t%s\t%s\t%s\n", change.Sequence, change.Event, printable.Date(change.From), until, key)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// Changes returns every change of a service's keys. A revocation brings no key, so a history has
// no line for it (§8.4): it is where a sequence is missing, and it came when the key before it
// ended. A revoked service is not revoked again, so at most one is missing in one place.
func Changes(h events.ServiceHistory) []events.HistoryKey {
	var changes []events.HistoryKey
	upTo := func(sequence int64) {
		if n := len(changes); n > 0 && changes[n-1].Sequence < sequence && changes[n-1].Until != nil {
			changes = append(changes,
				events.HistoryKey{Event: events.ServiceRevocation, Sequence: sequence, From: *changes[n-1].Until})
		}
	}
	for _, key := range h.Keys {
		upTo(key.Sequence - 1)
		changes = append(changes, key)
	}
	upTo(h.Sequence)
	return changes
}
