// Package decision decides requests: it runs the checks of docs/protocol.md §6 and makes the signed
// messages that announce the result. It is pure: the same state, requests, time and [Issuer] lead
// to the same outcomes. It knows no database, no broker, no clock and no randomness.
//
// The way of a batch through the package:
//
//	NewIncoming ──▶ NewBatch ──▶ Decide ──▶ Unconfirmed ──▶ Correct ──▶ ApplyLimits ──▶ SignRefusals
//	 parse           group by     the checks  answers that     decide      limits of       receipts of
//	 a message       service      of §6       rest on memory   again       an app          refusals
//
// The checks are one ordered switch after the other in decide.go. A new check of a request belongs
// there, with its reason in package events and the sentence for the sender next to the check.
package decision
