package verify

import (
	"runtime"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// better returns the registry's answer, unless ours says more: its record does not name the keys that have ended.
func better(ours, theirs events.VerifyAnswer) events.VerifyAnswer {
	if ours.Reason == events.ExpiredKey && theirs.Reason == string(events.InvalidSignature) {
		return ours
	}
	return theirs
}

// atLeastAsNewAs says whether the registry's record may have a say beside what the events told: an older one could
// revive a key that has ended.
func (k *known) atLeastAsNewAs(have *known) bool { return k.keyring.Head >= have.keyring.Head }

// triedIn returns how many of the keyring's first keys are accepted by another one, too, and so were tried with that.
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

// judgeIf is judge for a service that may not be known.
func (k *known) judgeIf(known bool, q *events.VerifyQuery, now int64, tried int) (answer events.VerifyAnswer, sure bool) {
	if !known {
		return refused(string(events.UnknownService)), false
	}
	return k.judge(q, now, tried)
}

// judge answers from one keyring. It isn't sure where the registry may know of a key, or of a key's grace, that the
// keyring lacks. So many keys, its first ones, are known not to have made the signature.
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

// valid returns the key that is accepted now and made the signature, or nil. A keyring has its newest key first, so
// that is the first one to be tried.
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

// endedState returns the state of the key that made the signature and is not accepted, or Unknown. Only so many of such keys
// are tried, the newest: this is for the reason alone, and garbage must stay cheap.
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
			runtime.Gosched() // a reason may take a while, and others wait for their answer
		}
		if key.PublicKey.Verify(q.Message, q.Signature) {
			return state
		}
	}
	return keyring.Unknown
}

// revoked says whether the service has no key that is accepted. A key in grace would be one, and none is current.
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
	if k.sequence == k.keyring.Head { // else the head is a timestamp, and no sequence
		answer.Sequence = k.sequence
	}
	return answer
}

func refused(reason string) events.VerifyAnswer {
	return events.VerifyAnswer{Result: events.Refused, Reason: reason}
}
