package inspect

import (
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
)

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
