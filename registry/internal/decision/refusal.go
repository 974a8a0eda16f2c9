package decision

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

	"omiappreg.org/keyrotation/events"
)

// SignRefusals makes the reasons final, by [Batch.EarlierKeys], and signs the receipts of refusals.
// It is the last step, and runs once.
func (b *Batch) SignRefusals() {
	nonces := NewRefusalNonces(b.issuer.Key)
	b.issuer.Parallel(len(b.Groups), 1, func(i int) {
		g := b.Groups[i]
		for j := range g.Outcomes {
			o := &g.Outcomes[j]
			if g.mayVerify > 0 && o.mayBeSuperseded() {
				g.mayVerify--
				o.checkSuperseded(b.EarlierKeys[g.Target], g.sequencesBack)
			}
			o.signRefusal(b.issuer, b.At.Unix(), nonces)
		}
	})
}

// signRefusal signs the receipt of a refusal.
func (o *Outcome) signRefusal(issuer Issuer, now int64, nonces RefusalNonces) {
	if o.Verdict != Refused || o.Dropped {
		return
	}
	receipt := events.Receipt{
		Origin: issuer.Rules.Origin, Target: o.In.Request.Target, Event: events.RequestRejected,
		RequestNonce: o.In.Request.Nonce, Timestamp: now, Nonce: nonces.Of(&o.In),
		Reason: o.Reason, Detail: o.Detail, RequestHash: events.RequestHash(o.In.Payload),
	}
	o.ReceiptNonce, o.ReceiptBytes = receipt.Nonce, receipt.Sign(issuer.Key)
}

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
		panic("decision: base64url is no nonce: " + err.Error()) // both use one alphabet
	}
	return nonce
}
