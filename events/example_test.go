package events_test

import (
	"errors"
	"fmt"
	"log"

	"omiappreg.org/keyrotation/events"
)

// A service signs a request for a new key. Whoever receives it reads it in one step.
func ExampleDraft_Sign() {
	target, err := events.ParseTarget("org.example.shop.cms")
	if err != nil {
		log.Fatal(err)
	}
	current, next := events.GenerateSigningKey(), events.GenerateSigningKey()
	draft := events.Draft{
		Kind: events.Rotation, Target: target, NewKey: next, Timestamp: 1_800_000_000, Nonce: events.NewNonce(),
	}
	payload, err := draft.Sign(current)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(draft.Subject())

	request, err := events.ParseRequest(draft.Subject(), payload)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(request.Kind, request.Target.Service, request.NewKey == next.Public())
	fmt.Println("signed by the current key:", current.Public().Verify(request.Signed, request.Signature))
	// Output:
	// omi.v1.requests.rotation.org.example.shop.cms
	// key_rotation cms true
	// signed by the current key: true
}

// A core service believes an invalidation only if the registry signed it.
func ExampleTrust_Invalidation() {
	registry, other := events.GenerateSigningKey(), events.GenerateSigningKey()
	target, err := events.ParseTarget("org.example.shop.cms")
	if err != nil {
		log.Fatal(err)
	}
	bound := events.Invalidation{
		Origin: "omiappreg.org", Target: target, Event: events.ServiceBinding,
		NewKey: events.GenerateSigningKey().Public(), GracePeriodExpiry: 1_800_000_000, Timestamp: 1_800_000_000,
		Nonce: events.NewNonce(), Sequence: 1,
	}

	trust, err := events.NewTrust("omiappreg.org", registry.Public())
	if err != nil {
		log.Fatal(err)
	}
	event, err := trust.Invalidation(bound.Subject(), bound.Sign(registry))
	fmt.Println(event.Event, event.Sequence, err)

	_, err = trust.Invalidation(bound.Subject(), bound.Sign(other))
	if refusal := (*events.Refusal)(nil); errors.As(err, &refusal) {
		fmt.Println(refusal.Reason)
	}
	// Output:
	// SERVICE_BINDING 1 <nil>
	// untrusted_signature
}
