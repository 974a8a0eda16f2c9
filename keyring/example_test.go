package keyring_test

import (
	"fmt"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// A core service applies the events of a service in the order in which they arrive, which need not
// be their own order.
func Example() {
	first, second := events.GenerateSigningKey().Public(), events.GenerateSigningKey().Public()
	bound := events.Invalidation{Event: events.ServiceBinding, Sequence: 1, Timestamp: 1000, NewKey: first}
	rotated := events.Invalidation{
		Event: events.KeyRotation, Sequence: 2, Timestamp: 2000,
		OldKey: first, NewKey: second, GracePeriodExpiry: 2300,
	}

	var k keyring.Keyring
	k = k.Apply(&rotated)
	k = k.Apply(&bound)

	current, _ := k.Current()
	fmt.Println("the second key is current:", current.PublicKey == second)
	old, _ := k.Find(first)
	fmt.Println("in grace at 2299:", k.At(old, 2299) == keyring.InGrace)
	fmt.Println("ended at 2300:", k.At(old, 2300) == keyring.Ended)
	// Output:
	// the second key is current: true
	// in grace at 2299: true
	// ended at 2300: true
}

// Two processes have seen different events. Joined, they know what either knows.
func ExampleKeyring_Join() {
	key := events.GenerateSigningKey().Public()
	bound := keyring.Of(&events.Invalidation{Event: events.ServiceBinding, Sequence: 1, Timestamp: 1000, NewKey: key})
	revoked := keyring.Of(&events.Invalidation{Event: events.ServiceRevocation, Sequence: 2, Timestamp: 1500, OldKey: key, GracePeriodExpiry: 1500})

	joined := bound.Join(revoked)
	found, _ := joined.Find(key)
	_, current := joined.Current()
	fmt.Println(joined.Until(found), current)
	// Output: 1500 false
}
