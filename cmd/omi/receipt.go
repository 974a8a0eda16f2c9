package main

import (
	"fmt"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/inspect"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

// answer prints a receipt. A refusal is an error with its reason.
func answer(c session.Connection, receipt events.Receipt, done string) error {
	refused := receipt.Event == events.RequestRejected
	var printed error
	if c.JSON {
		printed = process.PrintJSON(inspect.ReceiptView(receipt))
	} else if !refused {
		printed = process.Print("%s", inspect.ReceiptText(receipt, done))
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
