package events

import (
	"crypto"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Draft is a request before it is signed: what a service (rotation) or a developer (the others) asks for.
type Draft struct {
	Kind        RequestKind
	Target      Target
	Timestamp   int64      // seconds since the Unix epoch
	Nonce       Nonce      // [NewNonce]
	Origin      string     // of the registry that it is for; another one refuses it. Empty: any registry takes it
	NewKey      SigningKey // the new key, which proves that its holder has it; none in a revocation
	GracePeriod *int64     // seconds, rotation only; nil: the registry's own
	EndEarlier  bool       // rotation with a grace period of 0 only: it ends the keys that are in grace too
	ServiceType string     // binding and reset only, optional
	EndpointURL string     // binding and reset only, optional

	ProviderReceipt jsontext.Value // revocation only, optional: a JSON object
}

// The members of data in the order in which the spec prints them.
type (
	rotationData struct {
		NewPublicKey      PublicKey   `json:"new_public_key,omitzero"` // absent, it is refused as missing
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
		PublicKey   PublicKey   `json:"public_key,omitzero"` // absent, it is refused as missing
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

// envelope is §3's, with the one more member that its kind of message may have.
type envelope struct {
	Version         string         `json:"version"`
	Data            jsontext.Value `json:"data"`
	Signature       Signature      `json:"signature"`
	NewKeySignature Signature      `json:"new_key_signature,omitzero"`
	KeyID           string         `json:"key_id,omitzero"`
}

// Subject returns where the request is published (§4).
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

// RequestMsgID returns the `Nats-Msg-Id` of a request with this nonce, published on this subject (§4).
func RequestMsgID(subject string, nonce Nonce) string { return subject + "/" + nonce.String() }

// Sign returns the message to publish, signed by the service's current key (rotation) or the developer's Master
// Key (the others), and with the new key's proof. What it returns passes [ParseRequest], or it returns why not.
func (d Draft) Sign(by SigningKey) ([]byte, error) {
	if d.NewKey.IsZero() {
		return d.SignWith(by.Private(), nil)
	}
	return d.SignWith(by.Private(), d.NewKey.Private())
}

// SignWith is [Draft.Sign] with Ed25519 keys that may live elsewhere, in a KMS or an HSM. newKey takes the place of
// d.NewKey; it is nil in a revocation.
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

// marshalData returns data as it is sent, in the spec's order of members, and as it is signed.
func marshalData(v any) (data jsontext.Value, canonical []byte, err error) {
	if data, err = json.Marshal(v); err != nil {
		return nil, nil, err
	}
	canonical, err = Canonical(data)
	return data, canonical, err
}

// signByRegistry returns the envelope of an answer of the registry's to a lookup. Its types always have a JSON form:
// an error here is a mistake in this package.
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
