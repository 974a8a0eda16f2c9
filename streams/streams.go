package streams

import (
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
)

// Names of the protocol's streams.
const (
	Requests      = "OMI_REQUESTS"
	Invalidations = "OMI_INVALIDATIONS"
	Receipts      = "OMI_RECEIPTS"
)

// Names of the durable consumers that the protocol knows. Any other core service chooses a name of
// its own for its durable on [Invalidations]. Each process of Auth has a durable; [InstanceDurable]
// returns its name.
const (
	RegistryDurable = "registry"
	AuthDurable     = "authsub"
	BillingDurable  = "billingsub"
)

const (
	keptPerSubject = 64
	receiptsKept   = 7 * 24 * time.Hour
	dedupeWindow   = 2 * time.Minute
	// requestsDedupeWindow is short because the broker keeps each Nats-Msg-Id in memory for that
	// long, and strangers can make any number of them. Nothing depends on it.
	requestsDedupeWindow = time.Second
	maxInFlight          = 8192
	// maxRequestsInFlight lets the registry look past a flood of requests for one service. The
	// registry sends back requests that it can't keep, or can't decide yet because its database
	// lacks changes, and the broker counts those too. Each costs the broker about 100 bytes.
	maxRequestsInFlight = 128 << 10
	// redeliveryAfter is how long a message waits for a process that was killed while it held the
	// message. It is short because that message may be a revocation, and a second delivery to a
	// slow process does no harm.
	redeliveryAfter = 5 * time.Second
)

// RequestsWaiting is the number of requests of one kind that may wait for one service. A service
// has one, and now and then a copy of it while the registry is down. The limit stops a flood and
// leaves room for other services.
const RequestsWaiting = 128

// RequestsConfig returns the configuration of the work queue of requests. JetStream counts a
// message's headers as part of its size.
func RequestsConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        Requests,
		Description: "Requests to the App Registry: rotation, binding and master reset, revocation.",
		Subjects: []string{
			events.RotationSubject + ">", events.BindingSubject + ">", events.RevocationSubject + ">",
		},
		Retention:  jetstream.WorkQueuePolicy,
		Storage:    jetstream.FileStorage,
		Discard:    jetstream.DiscardNew,
		MaxMsgSize: events.MaxMessage,
		Duplicates: requestsDedupeWindow,

		MaxMsgsPerSubject:    RequestsWaiting,
		DiscardNewPerSubject: true,
	}
}

// InvalidationsConfig returns the configuration of the stream of signed events, which is also the
// directory of all keys.
func InvalidationsConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              Invalidations,
		Description:       "Signed invalidation events of the App Registry: the last 64 of each service, for ever.",
		Subjects:          []string{events.InvalidationSubject + ">"},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		Discard:           jetstream.DiscardNew, // a full stream drops no earlier event
		MaxMsgsPerSubject: keptPerSubject,
		DenyDelete:        true,
		DenyPurge:         true,
		AllowDirect:       true,
		// The broker writes a batch to the disk once, even if it syncs every write.
		AllowAtomicPublish: true,
		Duplicates:         dedupeWindow,
		// Each replica of a service learns that its key has changed, and needs no consumer for it.
		RePublish: &jetstream.RePublish{
			Source: events.InvalidationSubject + ">", Destination: events.ChangeSubject + ">", HeadersOnly: true,
		},
	}
}

// ReceiptsConfig returns the configuration of the stream of signed answers.
func ReceiptsConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              Receipts,
		Description:       "Signed receipts of the App Registry: the last 64 of each service, for 7 days.",
		Subjects:          []string{events.ReceiptSubject + ">"},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		MaxMsgsPerSubject: keptPerSubject,
		MaxAge:            receiptsKept,
		AllowDirect:       true,
		// The broker writes a batch to the disk once, even if it syncs every write.
		AllowAtomicPublish: true,
		Duplicates:         dedupeWindow,
	}
}

// RegistryConsumer returns the configuration of the registry's durable on [Requests]. Its replicas
// share the durable.
func RegistryConsumer() jetstream.ConsumerConfig {
	config := durable(RegistryDurable, "The App Registry. Its replicas share this consumer.")
	config.MaxAckPending = maxRequestsInFlight
	return config
}

// SubscriberConsumer returns the configuration of a core service's durable on [Invalidations],
// starting with the first message. Each process that keeps its own state needs its own durable.
func SubscriberConsumer(name string) jetstream.ConsumerConfig {
	return durable(name, "A core service that applies every invalidation once.")
}

// InstanceMetadata is the key in a durable's metadata that names the instance that owns it.
const InstanceMetadata = "omi-instance"

// InstanceDurable returns the name of an instance's durable, where each of several processes
// receives every event.
func InstanceDurable(durable, instance string) string { return durable + "-" + instance }

// CoreDurable reports whether a durable belongs to Auth or Billing, or to one of their instances. A
// change counts as propagated once all of these have applied it (docs/protocol.md §8.1).
func CoreDurable(name string) bool {
	for _, base := range [...]string{AuthDurable, BillingDurable} {
		if name == base || strings.HasPrefix(name, InstanceDurable(base, "")) {
			return true
		}
	}
	return false
}

// ReceiverConsumers is the number of consumer names that one receiver has.
const ReceiverConsumers = 64

// ReceiverConsumer returns a receiver's n-th consumer name, counted from 1. A broker's permissions
// allow a receiver no other names.
func ReceiverConsumer(receiver string, n int) string {
	return fmt.Sprintf("receiver-%s-%d", receiver, n)
}

func durable(name, description string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:       name,
		Description:   description,
		DeliverPolicy: jetstream.DeliverAllPolicy,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       redeliveryAfter,
		MaxDeliver:    -1, // an outage of a day loses nothing
		MaxAckPending: maxInFlight,
	}
}
