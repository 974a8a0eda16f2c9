package events

import (
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Names of §4's streams and of the durable consumers that it names. Any other core service takes a durable of its
// own on the stream of invalidations. Of Auth's, each process has one, see [InstanceDurable].
const (
	RequestStream      = "OMI_REQUESTS"
	InvalidationStream = "OMI_INVALIDATIONS"
	ReceiptStream      = "OMI_RECEIPTS"

	RegistryDurable = "registry"
	AuthDurable     = "authsub"
	BillingDurable  = "billingsub"
)

const (
	keptPerSubject = 64
	receiptsKept   = 7 * 24 * time.Hour
	dedupeWindow   = 2 * time.Minute
	// requestsDedupeWindow is short, since the broker keeps each Nats-Msg-Id in memory for so long,
	// and strangers make any number of them. Nothing depends on it.
	requestsDedupeWindow = time.Second
	// RequestsWaiting is how many requests of one kind may wait for one service. A service has one,
	// and a copy of it now and then while nobody answers; a flood ends there, and leaves the others
	// their room.
	RequestsWaiting = 128
	maxInFlight     = 8192
	// maxRequestsInFlight lets the registry look behind a flood of requests for one service, for those of others: what it
	// can't keep, or can't decide yet since its database lacks changes, it sends back, and the broker counts that too. It costs the broker some 100 bytes each.
	maxRequestsInFlight = 128 << 10
	// redeliveryAfter is how long a message waits for a process that was killed with it in its hands. It is short, since
	// that message may be a revocation; a second delivery to one that was only slow does no harm.
	redeliveryAfter = 5 * time.Second
)

// RequestStreamConfig is the work queue of requests (§4). JetStream counts a message's headers into its size.
func RequestStreamConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:        RequestStream,
		Description: "Requests to the App Registry: rotation, binding and master reset, revocation.",
		Subjects:    []string{RotationSubject + ">", BindingSubject + ">", RevocationSubject + ">"},
		Retention:   jetstream.WorkQueuePolicy,
		Storage:     jetstream.FileStorage,
		Discard:     jetstream.DiscardNew,
		MaxMsgSize:  MaxMessage,
		Duplicates:  requestsDedupeWindow,

		MaxMsgsPerSubject:    RequestsWaiting,
		DiscardNewPerSubject: true,
	}
}

// InvalidationStreamConfig is the stream of signed events, which is the directory of all keys too (§4).
func InvalidationStreamConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              InvalidationStream,
		Description:       "Signed invalidation events of the App Registry: the last 64 of each service, for ever.",
		Subjects:          []string{InvalidationSubject + ">"},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		Discard:           jetstream.DiscardNew, // where an operator bounds its size, no event goes for another service's
		MaxMsgsPerSubject: keptPerSubject,
		DenyDelete:        true,
		DenyPurge:         true,
		AllowDirect:       true,
		// One write to the disk for many messages, where the broker waits for each.
		AllowAtomicPublish: true,
		Duplicates:         dedupeWindow,
		// Each replica of a service hears that its key has changed, and needs no consumer for it.
		RePublish: &jetstream.RePublish{Source: InvalidationSubject + ">", Destination: ChangeSubject + ">", HeadersOnly: true},
	}
}

// ReceiptStreamConfig is the stream of signed answers (§4).
func ReceiptStreamConfig() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              ReceiptStream,
		Description:       "Signed receipts of the App Registry: the last 64 of each service, for 7 days.",
		Subjects:          []string{ReceiptSubject + ">"},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		MaxMsgsPerSubject: keptPerSubject,
		MaxAge:            receiptsKept,
		AllowDirect:       true,
		// One write to the disk for many messages, where the broker waits for each.
		AllowAtomicPublish: true,
		Duplicates:         dedupeWindow,
	}
}

// RegistryConsumerConfig is the registry's durable on the stream of requests. Replicas share it.
func RegistryConsumerConfig() jetstream.ConsumerConfig {
	config := durable(RegistryDurable, "The App Registry. Its replicas share this consumer.")
	config.MaxAckPending = maxRequestsInFlight
	return config
}

// SubscriberConsumerConfig is a core service's durable on the stream of invalidations, from its first message:
// each process that keeps a state of its own has one of its own.
func SubscriberConsumerConfig(name string) jetstream.ConsumerConfig {
	return durable(name, "A core service that applies every invalidation once.")
}

// InstanceMetadata is the member of a durable's metadata that names the instance whose it is.
const InstanceMetadata = "omi-instance"

// InstanceDurable is the name of the durable of one of several processes that each hear every event.
func InstanceDurable(durable, instance string) string { return durable + "-" + instance }

// CoreDurable reports whether a durable's name is Auth's or Billing's, or that of an instance of theirs: a change waits for those (§8.1).
func CoreDurable(name string) bool {
	for _, base := range [...]string{AuthDurable, BillingDurable} {
		if name == base || strings.HasPrefix(name, InstanceDurable(base, "")) {
			return true
		}
	}
	return false
}

// ReceiverConsumers is how many names a receiver has at most.
const ReceiverConsumers = 64

// ReceiverConsumer is the n-th of the names, from 1 on, that a receiver's consumers have at a broker that lets it use no others.
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
