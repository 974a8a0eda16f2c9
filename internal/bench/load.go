package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/parallel"
)

// App is the app of all services of a load.
const App = "org.omiappreg.bench.load.7f8a9d"

// Load consists of services that take turns at rotating, and of idle services. The services rotate
// in rounds, all of them in each round, always in the same random order. So their places in a
// database are as random as in real use, and a service's rotations are as far apart as possible.
type Load struct {
	Services  int
	Preloaded int // idle services
	Rotations int

	app   events.AppID
	first []events.SigningKey   // by the place in a round: the key to which the service is bound
	slots map[events.Target]int // places in a round
	order []events.Target       // by the place in a round
	keys  []events.PublicKey    // by rotation: the key that it brings
}

// Request is a signed rotation.
type Request struct {
	Subject string
	MsgID   string
	Payload []byte
}

// NewLoad makes the names and first keys of services.
func NewLoad(services, preloaded, rotations int) *Load {
	app, err := events.ParseAppID(App)
	if err != nil {
		panic("bench: the app's name is wrong: " + err.Error())
	}
	l := &Load{
		Services: services, Preloaded: preloaded, Rotations: rotations, app: app,
		first: make([]events.SigningKey, services), slots: make(map[events.Target]int, services),
		order: make([]events.Target, services), keys: make([]events.PublicKey, rotations),
	}
	for slot, i := range rand.Perm(services) { //nolint:gosec // an order, not a secret
		l.order[slot] = l.target(i)
		l.slots[l.order[slot]] = slot
	}
	parallel.Each(services, 16, func(slot int) { l.first[slot] = events.GenerateSigningKey() })
	return l
}

// target names a service. The names of rotating services are spread among all others.
func (l *Load) target(i int) events.Target {
	x := uint64(i) * 0x9e3779b97f4a7c15 // odd: no two services have one name
	id, err := events.ParseServiceID(fmt.Sprintf("cms-%016x", x^x>>32))
	if err != nil {
		panic("bench: a service's name is wrong: " + err.Error())
	}
	return events.Target{App: l.app, Service: id}
}

// Bindings returns the number of services, each of which has one event that binds it.
func (l *Load) Bindings() int { return l.Services + l.Preloaded }

// Binding returns the event that binds service i of [Load.Bindings], as the registry publishes it.
func (l *Load) Binding(i int, origin string, registry events.SigningKey) (event events.Invalidation, payload []byte) {
	now := time.Now().Unix()
	event = events.Invalidation{
		Origin: origin, Event: events.ServiceBinding, GracePeriodExpiry: now, Timestamp: now, Nonce: events.NewNonce(), Sequence: 1,
	}
	if i < l.Services {
		event.Target, event.NewKey = l.order[i], l.first[i].Public()
	} else {
		event.Target, event.NewKey = l.target(i), events.GenerateSigningKey().Public()
	}
	payload = event.Sign(registry)
	return event, payload
}

// rotationData is data as the spec prints it, without the additions of this protocol.
type rotationData struct {
	NewPublicKey      events.PublicKey `json:"new_public_key"`
	RotationTimestamp int64            `json:"rotation_timestamp"`
	Nonce             events.Nonce     `json:"nonce"`
	Context           string           `json:"context"`
}

type envelope struct {
	Version   string           `json:"version"`
	Data      jsontext.Value   `json:"data"`
	Signature events.Signature `json:"signature"`
}

// Sign makes all rotations: the spec's own payloads, each signed by the key that the service's
// previous rotation brought. at says when each rotation is due, which is its timestamp. signed
// counts them.
func (l *Load) Sign(ctx context.Context, at func(rotation int) time.Time, signed *atomic.Int64) ([]Request, error) {
	requests := make([]Request, l.Rotations)
	errs := make([]error, l.Services)
	parallel.Each(l.Services, 1, func(slot int) {
		key := l.first[slot]
		for i := slot; i < l.Rotations && ctx.Err() == nil; i += l.Services {
			next := events.GenerateSigningKey()
			requests[i], errs[slot] = signRotation(l.order[slot], key, next.Public(), at(i))
			if errs[slot] != nil {
				return
			}
			l.keys[i], key = next.Public(), next
			signed.Add(1)
		}
	})
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return requests, ctx.Err()
}

func signRotation(target events.Target, by events.SigningKey, key events.PublicKey, at time.Time) (Request, error) {
	nonce := events.NewNonce()
	data, err := json.Marshal(rotationData{key, at.Unix(), nonce, string(events.Rotation)})
	if err != nil {
		return Request{}, fmt.Errorf("make a request: %w", err)
	}
	canonical, err := events.Canonical(data)
	if err != nil {
		return Request{}, fmt.Errorf("make a request: %w", err)
	}
	payload, err := json.Marshal(envelope{"1.0", data, by.Sign(canonical)})
	if err != nil {
		return Request{}, fmt.Errorf("make a request: %w", err)
	}
	subject := events.RotationSubject + target.String()
	return Request{subject, events.RequestMsgID(subject, nonce), payload}, nil
}

// rotation returns the number of an event's rotation; false if it does not belong to this load.
func (l *Load) rotation(e *events.Invalidation) (int, bool) {
	slot, ok := l.slots[e.Target]
	i := slot + int(e.Sequence-2)*l.Services
	return i, ok && e.Sequence > 1 && i < l.Rotations && e.Event == events.KeyRotation && e.NewKey == l.keys[i]
}
