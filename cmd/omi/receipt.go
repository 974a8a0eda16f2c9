package main

import (
	"fmt"
	"strings"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

// answer prints a receipt. A refusal is an error with its reason.
func answer(c session.Connection, receipt events.Receipt, done string) error {
	refused := receipt.Event == events.RequestRejected
	var printed error
	if c.JSON {
		printed = process.PrintJSON(receiptView(receipt))
	} else if !refused {
		printed = process.Print("%s", receiptText(receipt, done))
	}
	if refused { // it says as much as what was to be printed
		return process.Refused(&client.RefusedError{Receipt: receipt})
	}
	return unsaid(done, printed)
}

// unsaid is the error of a change that is committed and could not be printed.
func unsaid(done string, err error) error {
	if err != nil {
		err = fmt.Errorf("%s, and that could not be printed: %w", done, err)
	}
	return err
}

func receiptText(receipt events.Receipt, done string) printable.Composed {
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

// receiptJSON is a receipt for programs.
type receiptJSON struct {
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

func receiptView(r events.Receipt) receiptJSON {
	return receiptJSON{
		Event: r.Event, AppID: r.Target.App, ServiceID: r.Target.Service, RequestNonce: r.RequestNonce, Timestamp: r.Timestamp,
		Sequence: r.Sequence, PublicKey: r.PublicKey, GracePeriodExpiry: r.GracePeriodExpiry, EventNonce: r.EventNonce,
		Reason: r.Reason, Detail: r.Detail,
	}
}
