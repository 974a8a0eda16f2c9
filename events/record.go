package events

import (
	"github.com/go-json-experiment/json/jsontext"
)

// MaxDocument is the size of the largest signed answer to a lookup that a reader takes, in bytes. A
// history has a line for every key that a service ever had, so it can be longer than a message.
const MaxDocument = 16 << 20

// ServiceStatus says whether a service may act (§8.1).
type ServiceStatus string

// The statuses of a service that was bound at least once.
const (
	Active  ServiceStatus = "active"
	Revoked ServiceStatus = "revoked"
)

// ServiceRecord is what the registry knows about a service now (§8.1).
type ServiceRecord struct {
	Origin      string          `json:"origin"`
	AppID       AppID           `json:"app_id"`
	ServiceID   ServiceID       `json:"service_id"`
	Record      string          `json:"record"` // "SERVICE"
	Status      ServiceStatus   `json:"status"`
	Sequence    int64           `json:"sequence"`
	BoundAt     int64           `json:"bound_at"`
	Current     CurrentKey      `json:"current,omitzero"`
	Grace       []GraceKey      `json:"grace"`
	Propagation map[string]bool `json:"propagation"` // by durable for which a change waits
	// (+) by durable for which it doesn't
	OtherDurables   map[string]bool `json:"other_durables,omitzero"`
	ServiceType     string          `json:"service_type,omitzero"`
	EndpointURL     string          `json:"endpoint_url,omitzero"`
	ProviderReceipt jsontext.Value  `json:"provider_receipt,omitzero"` // of a revocation, unchanged
	// a rotation before it is rate_limited
	NextRotationAt int64 `json:"next_rotation_at,omitzero"`
	Timestamp      int64 `json:"timestamp"`
}

// CurrentKey is the key that authorizes changes, and the time at which it became current.
type CurrentKey struct {
	PublicKey PublicKey `json:"public_key"`
	Since     int64     `json:"since"`
}

// GraceKey is an earlier key that is still accepted, and the end of its grace period.
type GraceKey struct {
	PublicKey PublicKey `json:"public_key"`
	Expires   int64     `json:"expires"`
}

// ServiceHistory is every key that a service ever had (§8).
type ServiceHistory struct {
	Origin    string       `json:"origin"`
	AppID     AppID        `json:"app_id"`
	ServiceID ServiceID    `json:"service_id"`
	Record    string       `json:"record"` // "HISTORY"
	Sequence  int64        `json:"sequence"`
	Keys      []HistoryKey `json:"keys"`
	// this is a part of the history, and others follow
	More      bool  `json:"more,omitzero"`
	Timestamp int64 `json:"timestamp"`
}

// HistoryPart is the largest number of keys in a part of a history. It is about 400 KB, and a NATS
// message may have 1 MB.
const HistoryPart = 2048

// HistoryKey is the life of one key: the event at Sequence brought it, and it is accepted in [From,
// Until).
type HistoryKey struct {
	PublicKey PublicKey `json:"public_key"`
	Event     EventKind `json:"event"`
	Sequence  int64     `json:"sequence"`
	From      int64     `json:"from"`
	Until     *int64    `json:"until,omitzero"` // absent while it is current
}

// RegistryInfo is what a registry says about itself (§8). It is not signed: it names keys, and
// trust in them must come from elsewhere.
type RegistryInfo struct {
	Origin       string      `json:"origin"`
	PublicKeys   []PublicKey `json:"public_keys"`
	GracePeriod  int64       `json:"grace_period"`
	MaxClockSkew int64       `json:"max_clock_skew"`
	RequireProof Proofs      `json:"require_proof"`
	JWKSMaxAge   int64       `json:"jwks_max_age"` // (+) seconds
}

const (
	// DefaultJWKSMaxAge applies if a registry doesn't say how long its JWK Sets may be kept, in
	// seconds.
	DefaultJWKSMaxAge = 60
	// JWKSMargin is an additional wait (§5.4), in seconds: a set may be on its way to a cache when
	// a change is committed.
	JWKSMargin = 2
)

// JWKSGrace returns the shortest grace period, in seconds, of which half is enough for every cache
// to lose an outdated JWK Set.
func (i RegistryInfo) JWKSGrace() int64 { return 2*(i.JWKSMaxAge+JWKSMargin) + 1 }

// ParseRegistryInfo reads what a registry says about itself (§8), or returns a [*Refusal] if the
// answer is something else.
func ParseRegistryInfo(b []byte) (RegistryInfo, error) {
	info := RegistryInfo{JWKSMaxAge: DefaultJWKSMaxAge}
	if err := decodeAnswer(b, &info); err != nil {
		return RegistryInfo{}, err
	}
	if info.Origin == "" || len(info.PublicKeys) == 0 {
		return RegistryInfo{}, refuse(InvalidField, "The answer names no registry, or no key of it.")
	}
	if info.JWKSMaxAge < 0 {
		return RegistryInfo{}, refuse(InvalidField, "jwks_max_age is 0 or more.")
	}
	return info, nil
}

// Unbound is the registry's statement that it had never bound a service at a time (§8.1).
type Unbound struct {
	Origin    string    `json:"origin"`
	AppID     AppID     `json:"app_id"`
	ServiceID ServiceID `json:"service_id"`
	Record    string    `json:"record"` // "UNBOUND"
	Timestamp int64     `json:"timestamp"`
}

// MaxUnboundAge is how far the time of an [Unbound] may be from its reader's time, in seconds. The
// service may have been bound since an older one.
const MaxUnboundAge = 300

// KeyRecord is the registry's statement which service a key belongs to, at a time (§8.6). If it
// names no service, the key was never registered.
type KeyRecord struct {
	Origin    string    `json:"origin"`
	Record    string    `json:"record"` // "KEY"
	PublicKey PublicKey `json:"public_key"`
	AppID     AppID     `json:"app_id,omitzero"`
	ServiceID ServiceID `json:"service_id,omitzero"`
	Event     EventKind `json:"event,omitzero"`
	Sequence  int64     `json:"sequence,omitzero"`
	From      int64     `json:"from,omitzero"`
	Until     *int64    `json:"until,omitzero"` // absent while it is current
	Timestamp int64     `json:"timestamp"`
}

// Registered reports whether a service has or had the key.
func (k *KeyRecord) Registered() bool { return k.Sequence > 0 }

const (
	keyRecord     = "KEY"
	serviceRecord = "SERVICE"
	historyRecord = "HISTORY"
	unboundRecord = "UNBOUND"
)

// Sign returns the record in an envelope signed by the registry.
func (r ServiceRecord) Sign(key SigningKey) []byte {
	r.Record = serviceRecord
	return signByRegistry(r, key)
}

// Sign returns the history in an envelope signed by the registry.
func (h ServiceHistory) Sign(key SigningKey) []byte {
	h.Record = historyRecord
	return signByRegistry(h, key)
}

// Sign returns the statement in an envelope signed by the registry.
func (u Unbound) Sign(key SigningKey) []byte {
	u.Record = unboundRecord
	return signByRegistry(u, key)
}

// Sign returns the record in an envelope signed by the registry.
func (k KeyRecord) Sign(key SigningKey) []byte {
	k.Record = keyRecord
	return signByRegistry(k, key)
}

// ServiceRecord reads a record of target that the registry signed, or returns a [*Refusal] that
// says why it can't be believed.
func (t Trust) ServiceRecord(target Target, document []byte) (ServiceRecord, error) {
	var r ServiceRecord
	if err := t.openDocument(document, &r); err != nil {
		return ServiceRecord{}, err
	}
	return r, checkDocument(t, r.Origin, r.Record, serviceRecord, Target{r.AppID, r.ServiceID}, target)
}

// ServiceHistory reads a history of target that the registry signed, or returns a [*Refusal] that
// says why it can't be believed.
func (t Trust) ServiceHistory(target Target, document []byte) (ServiceHistory, error) {
	var h ServiceHistory
	if err := t.openDocument(document, &h); err != nil {
		return ServiceHistory{}, err
	}
	return h, checkDocument(t, h.Origin, h.Record, historyRecord, Target{h.AppID, h.ServiceID}, target)
}

// Unbound reads the registry's statement that target was never bound, or returns a [*Refusal] that
// says why it can't be believed at the time now.
func (t Trust) Unbound(target Target, document []byte, now int64) error {
	var u Unbound
	if err := t.openDocument(document, &u); err != nil {
		return err
	}
	if err := checkDocument(t, u.Origin, u.Record, unboundRecord, Target{u.AppID, u.ServiceID}, target); err != nil {
		return err
	}
	return checkAge(u.Timestamp, now)
}

// KeyRecord reads the registry's statement which service a key belongs to, or returns a [*Refusal]
// that says why it can't be believed at the time now.
func (t Trust) KeyRecord(key PublicKey, document []byte, now int64) (KeyRecord, error) {
	var k KeyRecord
	if err := t.openDocument(document, &k); err != nil {
		return KeyRecord{}, err
	}
	if err := checkDocument(t, k.Origin, k.Record, keyRecord, Target{}, Target{}); err != nil {
		return KeyRecord{}, err
	}
	if k.PublicKey != key || k.Registered() == (k.AppID.IsZero() || k.ServiceID.IsZero()) {
		return KeyRecord{}, refuse(TargetMismatch, "The document is about another key, or names only half of a service.")
	}
	return k, checkAge(k.Timestamp, now)
}

// checkAge refuses a statement that is too old or from the future, because it says nothing about
// now.
func checkAge(at, now int64) error {
	if at < now-MaxUnboundAge || at > now+MaxUnboundAge {
		return refuse(TimestampOutOfWindow, "The statement's time is too far from now: it is old, or a clock is wrong.")
	}
	return nil
}

func checkDocument(t Trust, origin, record, wantRecord string, target, want Target) error {
	switch {
	case origin != t.origin:
		return refuse(WrongOrigin, "The document is from another registry.")
	case record != wantRecord:
		return refuse(InvalidField, "The document is of another kind.")
	case target != want:
		return refuse(TargetMismatch, "The document is about another service.")
	}
	return nil
}
