package verify

import (
	"runtime"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// better returns the registry's answer, unless ours says more: the registry's record does not name
// ended keys.
func better(ours, theirs events.VerifyAnswer) events.VerifyAnswer {
	if ours.Reason == events.ExpiredKey && theirs.Reason == string(events.InvalidSignature) {
		return ours
	}
	return theirs
}

// atLeastAsNewAs reports whether the registry's record may be used together with the events. An
// older record could revive a key that has ended.
func (k *known) atLeastAsNewAs(have *known) bool { return k.keyring.Head >= have.keyring.Head }

// triedIn returns how many of the first keys of the keyring are also accepted by other, and so were
// tried with it.
func (k *known) triedIn(other *known, now int64) (n int) {
	for _, key := range k.keyring.Keys {
		theirs, found := other.keyring.Find(key.PublicKey)
		if state := other.keyring.At(theirs, now); !found || state != keyring.Current && state != keyring.InGrace {
			break
		}
		n++
	}
	return n
}

// judgeIf is judge for a service that may be unknown.
func (k *known) judgeIf(known bool, q *events.VerifyQuery, now int64, tried int) (answer events.VerifyAnswer, sure bool) {
	if !known {
		return refused(string(events.UnknownService)), false
	}
	return k.judge(q, now, tried)
}

// judge answers from one keyring. The answer is not sure if the registry may know a key, or the
// grace of a key, that the keyring lacks. The first tried keys are known not to have made the
// signature.
func (k *known) judge(q *events.VerifyQuery, now int64, tried int) (answer events.VerifyAnswer, sure bool) {
	if key := k.valid(q, now, tried); key != nil {
		return k.accepted(key), true
	}
	answer = refused(string(events.InvalidSignature))
	switch k.endedState(q, now, endedKept) {
	case keyring.Ended:
		answer, sure = refused(events.ExpiredKey), true
	case keyring.Replaced: // by an event that has not come: it may be in grace
		answer = refused(events.ExpiredKey)
	}
	if k.revoked(now) {
		answer.Reason = events.RevokedService
	}
	return answer, sure
}

// valid returns the key that is accepted now and made the signature, or nil. A keyring has its
// newest key first, so that key is tried first.
func (k *known) valid(q *events.VerifyQuery, now int64, tried int) *keyring.Key {
	for i := tried; i < len(k.keyring.Keys); i++ {
		key := &k.keyring.Keys[i]
		state := k.keyring.At(*key, now)
		if (state == keyring.Current || state == keyring.InGrace) && key.PublicKey.Verify(q.Message, q.Signature) {
			return key
		}
	}
	return nil
}

// endedState returns the state of the key that made the signature and is not accepted, or Unknown.
// It tries only the newest such keys, at most so many: the result is only the reason for a refusal,
// and garbage must stay cheap.
func (k *known) endedState(q *events.VerifyQuery, now int64, most int) keyring.State {
	tried := 0
	for _, key := range k.keyring.Keys {
		state := k.keyring.At(key, now)
		if state == keyring.Current || state == keyring.InGrace {
			continue
		}
		if tried++; tried > most {
			break
		}
		if tried%endedKept == 0 {
			runtime.Gosched() // a reason may take a while, and other requests wait
		}
		if key.PublicKey.Verify(q.Message, q.Signature) {
			return state
		}
	}
	return keyring.Unknown
}

// revoked reports whether the service has no key that is accepted, current or in grace.
func (k *known) revoked(now int64) bool {
	for _, key := range k.keyring.Keys {
		if state := k.keyring.At(key, now); state == keyring.Current || state == keyring.InGrace {
			return false
		}
	}
	return true
}

func (k *known) accepted(key *keyring.Key) events.VerifyAnswer {
	answer := events.VerifyAnswer{Result: events.Accepted, Key: events.KeyCurrent, PublicKey: key.PublicKey}
	if until := k.keyring.Until(*key); until != keyring.NoEnd {
		answer.Key, answer.Expires = events.KeyGrace, until
	}
	if k.sequence == k.keyring.Head { // otherwise the head is a timestamp, not a sequence
		answer.Sequence = k.sequence
	}
	return answer
}

func refused(reason string) events.VerifyAnswer {
	return events.VerifyAnswer{Result: events.Refused, Reason: reason}
}
