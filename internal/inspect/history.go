package inspect

import (
	"fmt"
	"io"
	"text/tabwriter"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
)

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
