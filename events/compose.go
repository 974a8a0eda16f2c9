package events

import (
	"crypto"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Draft is a request before it is signed. A service asks for a rotation, and a developer for the
// other kinds.
type Draft struct {
	Kind        RequestKind
	Target      Target
	Timestamp   int64      // seconds since the Unix epoch
	Nonce       Nonce      // see [NewNonce]
	Origin      string     // of the one registry that may take it; empty: any
	NewKey      SigningKey // also signs the proof; zero in a revocation
	GracePeriod *int64     // seconds, rotation only; nil: the registry's own
	EndEarlier  bool       // rotation with a grace period of 0: also end keys in grace
	ServiceType string     // binding and reset only, optional
	EndpointURL string     // binding and reset only, optional

	ProviderReceipt jsontext.Value // revocation only, optional: a JSON object
}

// The members of data, in the order in which the spec prints them.
type (
	rotationData struct {
		// if absent, refused as missing
		NewPublicKey      PublicKey   `json:"new_public_key,omitzero"`
		RotationTimestamp int64       `json:"rotation_timestamp"`
		Nonce             Nonce       `json:"nonce"`
		Context           RequestKind `json:"context"`
		AppID             AppID       `json:"app_id"`
		ServiceID         ServiceID   `json:"service_id"`
		GracePeriod       *int64      `json:"grace_period,omitzero"`
		EndEarlier        bool        `json:"end_earlier,omitzero"`
		Origin            string      `json:"origin,omitzero"`
	}
	bindingData struct {
		AppID       AppID       `json:"app_id"`
		ServiceID   ServiceID   `json:"service_id"`
		PublicKey   PublicKey   `json:"public_key,omitzero"` // if absent, refused as missing
		Timestamp   int64       `json:"timestamp"`
		Nonce       Nonce       `json:"nonce"`
		Context     RequestKind `json:"context"`
		ServiceType string      `json:"service_type,omitzero"`
		EndpointURL string      `json:"endpoint_url,omitzero"`
		Origin      string      `json:"origin,omitzero"`
	}
	revocationData struct {
		AppID           AppID          `json:"app_id"`
		ServiceID       ServiceID      `json:"service_id"`
		Timestamp       int64          `json:"timestamp"`
		Nonce           Nonce          `json:"nonce"`
		Context         RequestKind    `json:"context"`
		ProviderReceipt jsontext.Value `json:"provider_receipt,omitzero"`
		Origin          string         `json:"origin,omitzero"`
	}
)

// envelope is the envelope of §3, with the one more member that a kind of message may have.
type envelope struct {
	Version         string         `json:"version"`
	Data            jsontext.Value `json:"data"`
	Signature       Signature      `json:"signature"`
	NewKeySignature Signature      `json:"new_key_signature,omitzero"`
	KeyID           string         `json:"key_id,omitzero"`
}

// Subject returns the subject on which to publish the request (§4).
func (d Draft) Subject() string {
	switch d.Kind {
	case Rotation:
		return RotationSubject + d.Target.String()
	case Revocation:
		return RevocationSubject + d.Target.String()
	default:
		return BindingSubject + d.Target.String()
	}
}

// MsgID returns the request's `Nats-Msg-Id` (§4).
func (d Draft) MsgID() string { return RequestMsgID(d.Subject(), d.Nonce) }

// RequestMsgID returns the `Nats-Msg-Id` of a request with this nonce, published on this subject
// (§4).
func RequestMsgID(subject string, nonce Nonce) string { return subject + "/" + nonce.String() }

// Sign returns the message to publish, with the new key's proof. The service's current key signs a
// rotation, and the developer's Master Key the other kinds. If the message would not pass
// [ParseRequest], Sign returns the reason.
func (d Draft) Sign(by SigningKey) ([]byte, error) {
	if d.NewKey.IsZero() {
		return d.SignWith(by.Private(), nil)
	}
	return d.SignWith(by.Private(), d.NewKey.Private())
}

// SignWith is [Draft.Sign] with Ed25519 keys that may be kept elsewhere, such as in a KMS or an
// HSM. newKey replaces d.NewKey; it is nil in a revocation.
func (d Draft) SignWith(by, newKey crypto.Signer) ([]byte, error) {
	var public PublicKey
	if newKey != nil {
		var err error
		if public, err = PublicKeyOf(newKey); err != nil {
			return nil, err
		}
	}
	data, canonical, err := marshalData(d.data(public))
	if err != nil {
		return nil, err
	}
	e := envelope{Version: version, Data: data}
	if e.Signature, err = SignWith(by, canonical); err != nil {
		return nil, err
	}
	if newKey != nil {
		if e.NewKeySignature, err = SignWith(newKey, canonical); err != nil {
			return nil, err
		}
	}
	message, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	_, err = ParseRequest(d.Subject(), message)
	return message, err
}

func (d Draft) data(newKey PublicKey) any {
	switch d.Kind {
	case Rotation:
		return rotationData{newKey, d.Timestamp, d.Nonce, d.Kind, d.Target.App, d.Target.Service, d.GracePeriod, d.EndEarlier, d.Origin}
	case Revocation:
		return revocationData{d.Target.App, d.Target.Service, d.Timestamp, d.Nonce, d.Kind, d.ProviderReceipt, d.Origin}
	default:
		return bindingData{
			d.Target.App, d.Target.Service, newKey, d.Timestamp, d.Nonce, d.Kind, d.ServiceType, d.EndpointURL, d.Origin,
		}
	}
}

// marshalData returns data in the form that is sent, with the spec's order of members, and in the
// form that is signed.
func marshalData(v any) (data jsontext.Value, canonical []byte, err error) {
	if data, err = json.Marshal(v); err != nil {
		return nil, nil, err
	}
	canonical, err = Canonical(data)
	return data, canonical, err
}

// signByRegistry returns the envelope of the registry's answer to a lookup. The types of answers
// always have a JSON form, so an error here is a mistake in this package.
func signByRegistry(v any, key SigningKey) []byte {
	data, canonical, err := marshalData(v)
	if err != nil {
		panic("events: a message of the registry's own can't be encoded: " + err.Error())
	}
	e := envelope{Version: version, Data: data, Signature: key.Sign(canonical), KeyID: key.id}
	message, err := json.Marshal(e)
	if err != nil {
		panic("events: a message of the registry's own can't be encoded: " + err.Error())
	}
	return message
}
