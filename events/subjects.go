package events

import (
	"errors"
	"strings"
)

// Subjects of docs/protocol.md §4 and §8. A target follows those that end in a dot.
const (
	RotationSubject     = "omi.v1.requests.rotation."
	BindingSubject      = "omi.v1.requests.binding."
	RevocationSubject   = "omi.v1.requests.revocation."
	InvalidationSubject = "omi.v1.invalidations."
	ReceiptSubject      = "omi.v1.receipts."
	// ChangeSubject is where the broker announces that an event of a service was stored. Its
	// messages have no data.
	ChangeSubject = "omi.v1.changes."
	// AnswerSubject is where the registry publishes a receipt for clients that are waiting for it.
	// No stream listens there, so a client that waits may be allowed to subscribe. If it could
	// subscribe to the subject of a stream, a consumer that pushes to that subject would fill the
	// stream.
	AnswerSubject = "omi.v1.answers."

	LookupServiceSubject    = "omi.v1.lookup.service."
	LookupHistorySubject    = "omi.v1.lookup.history."
	LookupReceiptSubject    = "omi.v1.lookup.receipt."
	LookupKeySubject        = "omi.v1.lookup.key"
	LookupRegistrySubject   = "omi.v1.lookup.registry"
	AuthVerifySubject       = "omi.v1.auth.verify"
	BillingAttributeSubject = "omi.v1.billing.attribute"
)

// ErrSubject means that a subject is not one of §4, or that its target breaks §1.
var ErrSubject = errors.New("not a subject of the protocol")

// requestSubjects are the three classes of requests. A class allows the kinds of [Request] that
// belong to it.
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
