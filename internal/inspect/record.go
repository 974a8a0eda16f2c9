// Package inspect shows what a deployment knows and does: a service's record and history, and the
// messages as they come.
package inspect

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

// recordText returns a service's record for people.
func recordText(r events.ServiceRecord) printable.Composed {
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

// History is what `omi history` asks for: its grammar.
type History struct {
	session.Connection  `embed:""`
	session.TargetFlags `embed:""`
}

// Help is shown by --help.
func (*History) Help() string {
	return `Shows which event brought each key, and from when until when it is accepted. A key without
an end is the current one. The registry signs the list, and only that signature is believed.

  omi history --app-id org.example.dev --service-id cms

omi pin says whether you asked for all of it.`
}

// Run shows a service's history.
func (c *History) Run() error {
	t, err := c.Target()
	if err != nil {
		return err
	}
	return c.With(c.Timeout, func(ctx context.Context, s *session.Session) error {
		history, err := s.History(ctx, t)
		if err != nil {
			return err
		}
		if c.JSON {
			return process.PrintJSON(history)
		}
		return printHistory(history)
	})
}

// printHistory prints every change of a service's keys as a table.
func printHistory(h events.ServiceHistory) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
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

// ReceiptText returns the receipt of a change for people, after what was done.
func ReceiptText(receipt events.Receipt, done string) printable.Composed {
	var text strings.Builder
	printable.Fprintf(&text, "%s (sequence %d).\n", done, receipt.Sequence)
	if !receipt.PublicKey.IsZero() {
		printable.Fprintf(&text, "  current key  %s\n", receipt.PublicKey)
	}
	if receipt.GracePeriodExpiry > receipt.Timestamp {
		printable.Fprintf(&text, "  the old key stays valid until %s\n", printable.Date(receipt.GracePeriodExpiry))
	}
	return printable.Composed(text.String())
}

// ReceiptJSON is a receipt for programs.
type ReceiptJSON struct {
	Event             events.ReceiptKind `json:"event"`
	AppID             events.AppID       `json:"app_id"`
	ServiceID         events.ServiceID   `json:"service_id"`
	RequestNonce      events.Nonce       `json:"request_nonce,omitzero"`
	Timestamp         int64              `json:"timestamp"`
	Sequence          int64              `json:"sequence,omitzero"`
	PublicKey         events.PublicKey   `json:"public_key,omitzero"`
	GracePeriodExpiry int64              `json:"grace_period_expiry,omitzero"`
	EventNonce        events.Nonce       `json:"event_nonce,omitzero"`
	Reason            events.Reason      `json:"reason,omitzero"`
	Detail            string             `json:"detail,omitzero"`

	// after a change that ended the old key at once
	StillAccepted []events.GraceKey `json:"still_accepted,omitzero"`
}

// ReceiptView returns a receipt for programs.
func ReceiptView(r events.Receipt) ReceiptJSON {
	return ReceiptJSON{
		Event: r.Event, AppID: r.Target.App, ServiceID: r.Target.Service, RequestNonce: r.RequestNonce, Timestamp: r.Timestamp,
		Sequence: r.Sequence, PublicKey: r.PublicKey, GracePeriodExpiry: r.GracePeriodExpiry, EventNonce: r.EventNonce,
		Reason: r.Reason, Detail: r.Detail,
	}
}
