package events

// MadeAll asks whether the key made all these signatures, in one equation.
func MadeAll(key PublicKey, texts [][]byte, signatures []Signature) bool {
	k, err := newTrustedKey(TrustedKey{PublicKey: key})
	if err != nil {
		return false
	}
	messages, places := make([]reading, len(texts)), make([]int, len(texts))
	for i := range texts {
		messages[i].message, places[i] = message{canonical: texts[i], signature: signatures[i]}, i
	}
	return k.madeAll(newSum(len(texts)), messages, places)
}

// The bounds of how many signatures are checked together.
const (
	Together   = together
	Worthwhile = worthwhile
)
