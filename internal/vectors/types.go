package vectors

import (
	"cmp"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/events"
)

// Set is every vector of the folder, one entry for each file. Request files carry their own state:
// each case is read with the state of its file, and no other.
type Set struct {
	Canonical []CanonicalFile
	Keys      []KeyFile
	Events    []EventFile
	Requests  []RequestFile
}

// CanonicalFile gives the RFC 8785 form of texts.
type CanonicalFile struct {
	File    string          `json:"-"`
	Comment string          `json:"comment"`
	Cases   []CanonicalCase `json:"cases"`
}

// CanonicalCase is one text and its canonical form.
type CanonicalCase struct {
	Name      string `json:"name"`
	Input     string `json:"input"`
	Canonical string `json:"canonical"`
	SHA256    string `json:"sha256"` // of Canonical, in hex
}

// KeyFile holds the test keys, by name. Only tests may use them: they are public.
type KeyFile struct {
	File    string         `json:"-"`
	Comment string         `json:"comment"`
	Keys    map[string]Key `json:"keys"`
}

// Key is a private key and its expected public half.
type Key struct {
	Seed      string `json:"seed"` // 32 bytes in hex (RFC 8032)
	PublicKey string `json:"public_key"`
}

// Private returns the key of the seed. [Load] has checked the seed.
func (k Key) Private() ed25519.PrivateKey {
	seed, err := hex.DecodeString(k.Seed)
	if err != nil {
		panic("vectors: a key that Load did not read: " + err.Error())
	}
	return ed25519.NewKeyFromSeed(seed)
}

// EventFile holds messages of the invalidation stream, and what a subscriber that trusts these keys
// for Origin does with each of them alone.
type EventFile struct {
	File                string      `json:"-"`
	Comment             string      `json:"comment"`
	Origin              string      `json:"origin"`
	TrustedRegistryKeys []string    `json:"trusted_registry_keys"`
	Events              []EventCase `json:"events"`
}

// EventCase is one message. Expect is Applied or Rejected.
type EventCase struct {
	Name    string `json:"name"`
	Subject string `json:"subject"`
	Payload
	Expect string `json:"expect"`
	Note   string `json:"note"`
}

// The values of [EventCase.Expect], and those of [RequestCase.Expect] that are not reason codes of
// refusals.
const (
	Applied  = "applied"
	Rejected = "rejected"

	Committed = "committed"
	Duplicate = "duplicate"
)

// RequestFile holds requests, and what a registry in State does with each of them alone.
type RequestFile struct {
	File    string        `json:"-"`
	Comment string        `json:"comment"`
	State   State         `json:"state"`
	Cases   []RequestCase `json:"cases"`
}

// State is what a registry holds before a request comes, and how it is configured.
type State struct {
	Origin       string    `json:"origin"`
	GracePeriod  int64     `json:"grace_period"`
	MaxClockSkew int64     `json:"max_clock_skew"`
	RequireProof Proofs    `json:"require_proof"`
	Apps         []App     `json:"apps"`
	Services     []Service `json:"services"`
}

// Proofs is the policy on proofs: none, own or all (docs/protocol.md §5.1). The vectors were made
// for registries that know only on and off. So true means all, and false, or a state that says
// nothing, means none. None is not the default of a registry.
type Proofs string

// UnmarshalJSON reads both forms.
func (p *Proofs) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case "true":
		*p = "all"
	case "false":
		*p = "none"
	default:
		return json.Unmarshal(b, (*string)(p))
	}
	return nil
}

// App is an application that the registry knows.
type App struct {
	AppID           string `json:"app_id"`
	MasterPublicKey string `json:"master_public_key"`
}

// Service is a service that was bound before.
type Service struct {
	AppID        string        `json:"app_id"`
	ServiceID    string        `json:"service_id"`
	Status       string        `json:"status"` // active or revoked
	Sequence     int64         `json:"sequence"`
	Keys         []ServiceKey  `json:"keys"`
	UsedRequests []UsedRequest `json:"used_requests"`
	// LastChange says more of the last change; nil if the registry does not know more.
	LastChange *LastChange `json:"last_change"`
	// RefusedRequests are nonces of requests that were refused according to the stream of receipts.
	RefusedRequests []string `json:"refused_requests"`
}

// LastChange says where the request of a service's last change is.
type LastChange struct {
	Place
	CommittedAt int64 `json:"committed_at"`
	// of the last committed request by the Master Key
	MasterTimestamp int64 `json:"master_timestamp"`
}

// Place is where a request is: its sequence in a stream of requests. Another stream is one that was
// created again.
type Place struct {
	Stream   int64 `json:"stream"`
	Sequence int64 `json:"stream_sequence"`
}

// ServiceKey is a key that the service has or had. ValidUntil is nil for the current key.
type ServiceKey struct {
	PublicKey    string `json:"public_key"`
	FromSequence int64  `json:"from_sequence"`
	ValidUntil   *int64 `json:"valid_until"`
}

// UsedRequest is a request of the service that was committed.
type UsedRequest struct {
	Nonce               string `json:"nonce"`
	CanonicalDataSHA256 string `json:"canonical_data_sha256"` // in hex
	Sequence            int64  `json:"sequence"`              // of the event that it made
}

// RequestCase is one request. Expect is Committed, Duplicate or the reason code of a refusal.
type RequestCase struct {
	Name        string `json:"name"`
	Subject     string `json:"subject"`
	StoredAt    int64  `json:"stored_at"`    // when JetStream stored it
	ProcessedAt int64  `json:"processed_at"` // when the registry reads it; StoredAt by default
	Payload
	Place
	Expect         string `json:"expect"`
	ExpectGrace    *int64 `json:"expect_grace"`    // expiry - timestamp; nil: not checked
	ExpectEvent    string `json:"expect_event"`    // "": not said
	ExpectSequence int64  `json:"expect_sequence"` // 0: not checked
	RequireProof   Proofs `json:"require_proof"`   // "": the state's
	Note           string `json:"note"`
}

// Proofs returns the policy on proofs of a registry in this state that meets the case.
func (c RequestCase) Proofs(s State) events.Proofs {
	return cmp.Or(events.Proofs(c.RequireProof), events.Proofs(s.RequireProof), events.ProofsNone)
}

// Payload holds the bytes of a message. Bytes that are no text are written in base64. An empty
// message is a message, too.
type Payload struct {
	Text   *string `json:"message"`
	Base64 *string `json:"message_base64"`
}

// Message returns the bytes. [Load] has checked that there is one form of them, and that it can be
// decoded.
func (p Payload) Message() []byte {
	if p.Text != nil {
		return []byte(*p.Text)
	}
	b, err := base64.StdEncoding.DecodeString(*p.Base64)
	if err != nil {
		panic("vectors: a message that Load did not read: " + err.Error())
	}
	return b
}
