package events

import (
	"errors"
	"strings"
)

// Subjects of docs/protocol.md §4 and §8. Those that end in a dot take a target.
const (
	RotationSubject     = "omi.v1.requests.rotation."
	BindingSubject      = "omi.v1.requests.binding."
	RevocationSubject   = "omi.v1.requests.revocation."
	InvalidationSubject = "omi.v1.invalidations."
	ReceiptSubject      = "omi.v1.receipts."
	// ChangeSubject is where the broker says, without a word more, that an event of a service was stored.
	ChangeSubject = "omi.v1.changes."
	// AnswerSubject is where the registry publishes a receipt for those who wait for it now. No stream listens there, so whoever waits for an
	// answer may subscribe: a consumer that somebody makes push to the subject of a stream fills that stream.
	AnswerSubject = "omi.v1.answers."

	LookupServiceSubject    = "omi.v1.lookup.service."
	LookupHistorySubject    = "omi.v1.lookup.history."
	LookupReceiptSubject    = "omi.v1.lookup.receipt."
	LookupKeySubject        = "omi.v1.lookup.key"
	LookupRegistrySubject   = "omi.v1.lookup.registry"
	AuthVerifySubject       = "omi.v1.auth.verify"
	BillingAttributeSubject = "omi.v1.billing.attribute"
)

// ErrSubject means that a subject is none of §4's, or that its target breaks §1.
var ErrSubject = errors.New("not a subject of the protocol")

// requestSubjects are the three classes of requests; a class admits the contexts of [Request] that belong to it.
//
//nolint:gochecknoglobals // a constant, of a type that has none
var requestSubjects = [...]string{RotationSubject, BindingSubject, RevocationSubject}

// parseRequestSubject returns the class and the target of a request's subject, or [ErrSubject].
func parseRequestSubject(subject string) (class string, target Target, err error) {
	for _, class := range requestSubjects {
		if rest, ok := strings.CutPrefix(subject, class); ok {
			target, err := ParseTarget(rest)
			if err != nil {
				return "", Target{}, errors.Join(ErrSubject, err)
			}
			return class, target, nil
		}
	}
	return "", Target{}, ErrSubject
}

// targetOf returns the target of a subject that starts with prefix, or [ErrSubject].
func targetOf(subject, prefix string) (Target, error) {
	rest, ok := strings.CutPrefix(subject, prefix)
	if !ok {
		return Target{}, ErrSubject
	}
	target, err := ParseTarget(rest)
	if err != nil {
		return Target{}, errors.Join(ErrSubject, err)
	}
	return target, nil
}
