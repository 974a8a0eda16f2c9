package events

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// What a subscriber says of itself in the metadata of its durable (§8.1). The values are words, separated by blanks.
const (
	// TrustMetadata names the registry keys that it trusts: origin/key_id each, and behind it the end of one that has an end.
	TrustMetadata = "omi-trust"
	// FailedMetadata names the places in the stream of events that it has acknowledged and could not apply, or is [FailedMany].
	FailedMetadata = "omi-failed"
	// FailedMany means that they are too many to be named.
	FailedMany = "*"
)

// TrustedBy is the word by which a subscriber says that it trusts this key of the registry at origin.
func TrustedBy(origin string, key PublicKey) string { return origin + "/" + key.KeyID() }

// Announcement returns the words of [TrustMetadata] for this trust, sorted.
func (t Trust) Announcement() []string {
	words := make([]string, len(t.keys))
	for i, k := range t.keys {
		words[i] = TrustedBy(t.origin, k.key) + k.end.suffix()
	}
	slices.Sort(words)
	return slices.Compact(words)
}

// Trusts says whether a subscriber whose [TrustMetadata] has these words believes what this key signed and JetStream stored then,
// at this place of the stream. The zero time is now.
func Trusts(words []string, origin string, signer PublicKey, stored time.Time, place uint64) bool {
	return slices.ContainsFunc(words, func(word string) bool {
		name, text, ends := strings.Cut(word, "@")
		if name != TrustedBy(origin, signer) || !ends {
			return name == TrustedBy(origin, signer)
		}
		end, err := parseEnd(text)
		return err == nil && end.before(moment{stored, place})
	})
}

// MayHaveApplied says whether a durable with this metadata can have applied the event that was stored then, at this place of the
// stream, once it has acknowledged it: it trusts the key that signed the event, and did not fail on it. One that announces nothing can.
func MayHaveApplied(metadata map[string]string, origin string, signer PublicKey, stored time.Time, place uint64) bool {
	if trusted, announced := metadata[TrustMetadata]; announced && !Trusts(strings.Fields(trusted), origin, signer, stored, place) {
		return false
	}
	failed := strings.Fields(metadata[FailedMetadata])
	return !slices.Contains(failed, FailedMany) && !slices.Contains(failed, strconv.FormatUint(place, 10))
}

// OfUnknownKey says whether a message that [Trust.Invalidation] refuses as [UntrustedSignature] is in all other respects an
// event of this registry about the service in its subject, and names no key that is trusted: as it looks when the registry's
// key was changed, and this trust was not told. It returns the key_id that the message names, if any. All who may publish can
// make such a message.
func (t Trust) OfUnknownKey(subject string, payload []byte) (keyID string, looks bool) {
	m, err := readMessage(payload)
	if err != nil || t.hinted(m) >= 0 {
		return "", false
	}
	if _, err := t.readInvalidation(subject, m); err != nil {
		return "", false
	}
	return string(m.envelope.peek("key_id")), true
}
