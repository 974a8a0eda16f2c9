package main

import (
	"fmt"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/request"
)

// answer prints a receipt. A refusal is an error with its reason.
func answer(c connection, receipt events.Receipt, done string) error {
	if c.JSON {
		if err := process.PrintJSON(receiptView(receipt)); err != nil {
			return err
		}
	}
	if receipt.Event == events.RequestRejected {
		return process.Refused(&request.Refused{Receipt: receipt})
	}
	if !c.JSON {
		printReceipt(receipt, done)
	}
	return nil
}

func printReceipt(receipt events.Receipt, done string) {
	fmt.Printf("%s (sequence %d).\n", done, receipt.Sequence)
	if !receipt.PublicKey.IsZero() {
		fmt.Printf("  current key  %s\n", receipt.PublicKey)
	}
	if receipt.GracePeriodExpiry > receipt.Timestamp {
		fmt.Printf("  the old key stays valid until %s\n", date(receipt.GracePeriodExpiry))
	}
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
}

func receiptView(r events.Receipt) receiptJSON {
	return receiptJSON{
		Event: r.Event, AppID: r.Target.App, ServiceID: r.Target.Service, RequestNonce: r.RequestNonce, Timestamp: r.Timestamp,
		Sequence: r.Sequence, PublicKey: r.PublicKey, GracePeriodExpiry: r.GracePeriodExpiry, EventNonce: r.EventNonce,
		Reason: r.Reason, Detail: r.Detail,
	}
}
