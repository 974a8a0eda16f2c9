package decision

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

	"omiappreg.org/keyrotation/events"
)

const nonceBytes = 16

// RefusalNonces gives each refused message the nonce of its receipt. No database keeps refusals, so
// a message whose acknowledgement was lost is decided again, by this replica or another, perhaps on
// another state. The nonce is a function of the message, so the message still has one receipt: the
// first that the stream took. Because the nonce depends on a secret, those who know the message
// can't take it before the registry.
type RefusalNonces struct{ secret []byte }

func NewRefusalNonces(key events.SigningKey) RefusalNonces {
	mac := hmac.New(sha256.New, key.Private().Seed())
	mac.Write([]byte("nonces of the receipts of refusals"))
	return RefusalNonces{mac.Sum(nil)}
}

// Of returns the nonce for a message: for these bytes on this subject, stored at this time.
func (n RefusalNonces) Of(in *Incoming) events.Nonce {
	mac := hmac.New(sha256.New, n.secret)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(in.Stored.UnixNano())))
	mac.Write(append([]byte(in.Request.Target.String()), 0))
	mac.Write(in.Payload)
	nonce, err := events.ParseNonce(base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:nonceBytes]))
	if err != nil {
		panic("registry: base64url is no nonce: " + err.Error()) // both use one alphabet
	}
	return nonce
}
