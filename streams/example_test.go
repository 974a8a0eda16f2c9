package streams_test

import (
	"fmt"

	"omiappreg.org/keyrotation/streams"
)

// A core service of one's own reads the stream of events with a durable of its own.
func ExampleSubscriberConsumer() {
	config := streams.SubscriberConsumer("ledger")
	fmt.Println(streams.Invalidations, config.Durable, config.AckPolicy)
	// Output: OMI_INVALIDATIONS ledger AckExplicit
}

// Every process of Auth that keeps a state of its own has its own durable.
func ExampleInstanceDurable() {
	name := streams.InstanceDurable(streams.AuthDurable, "eu-1")
	fmt.Println(name, streams.CoreDurable(name))
	// Output: authsub-eu-1 true
}
