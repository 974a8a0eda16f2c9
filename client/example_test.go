package client_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"fmt"
	"log"
	"time"

	"omiappreg.org/keyrotation/client"
)

// A service opens its key store once, signs with the Signer, and rotates when it likes. Nothing that it signs is refused
// because of that.
func Example() {
	d := start() // a broker, a registry, and a bound service: in production they are there
	defer d.stop()
	ctx := context.Background()

	keys, err := client.OpenFolder(d.folder)
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	c, err := client.Open(ctx, client.Config{
		Target: d.target, // org.example.shop.cms
		Store:  keys,
		Conn:   d.nc,
		Trust:  d.trust, // the registry's public key and domain name
		Notify: func(e client.Event) { fmt.Println(e.Kind) },
	})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	receipt, err := c.Rotate(ctx)
	if err != nil {
		log.Fatal(err)
	}
	// The old key signs until every core service has heard of the new one. Nobody has to wait for that; an example does.
	if err := c.Settle(ctx); err != nil {
		log.Fatal(err)
	}
	_, public := c.Signer().Key()
	fmt.Println("signs with the key of sequence", receipt.Sequence, public == receipt.PublicKey)

	// Output:
	// requested
	// stored
	// committed
	// applied
	// promoted
	// signs with the key of sequence 2 true
}

// Signer is a crypto.Signer of whole messages: its signatures go to whoever checks them, with the service's name.
func ExampleSigner() {
	d := start()
	defer d.stop()
	keys, err := client.OpenFolder(d.folder)
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	c, err := client.Open(context.Background(), client.Config{Target: d.target, Store: keys, Conn: d.nc, Trust: d.trust})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	signature, err := c.Signer().Sign(nil, []byte("an order"), crypto.Hash(0))
	fmt.Println(c.Signer().Target(), len(signature), err)
	// Output: org.example.shop.cms 64 <nil>
}

// AutoRotate runs beside the service's other goroutines, in an oklog/run group for example, until its context ends.
func ExampleClient_AutoRotate() {
	d := start()
	defer d.stop()
	keys, err := client.OpenFolder(d.folder)
	if err != nil {
		log.Fatal(err)
	}
	defer keys.Close()
	c, err := client.Open(context.Background(), client.Config{Target: d.target, Store: keys, Conn: d.nc, Trust: d.trust})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- c.AutoRotate(ctx, client.Schedule{Every: 24 * time.Hour, Jitter: 0.2}) }()

	// At once, on demand: the schedule begins anew with it.
	receipt, err := c.Rotate(ctx)
	fmt.Println(receipt.Event, receipt.Sequence, err)
	stop()
	fmt.Println(<-done)
	// Output:
	// REQUEST_COMMITTED 2 <nil>
	// <nil>
}

// hsm keeps keys that never leave it, here in its memory; the journal stays in a folder. A real one would keep its keys.
type hsm struct {
	*client.Folder // for the journal
	slots          map[client.Slot]ed25519.PrivateKey
}

func (h *hsm) Signer(_ context.Context, slot client.Slot) (crypto.Signer, error) {
	if key, ok := h.slots[slot]; ok {
		return key, nil
	}
	return nil, client.ErrNoKey
}

func (h *hsm) Generate(_ context.Context, slot client.Slot) (crypto.Signer, error) {
	_, key, err := ed25519.GenerateKey(nil)
	h.slots[slot] = key
	return key, err
}

func (h *hsm) Promote(context.Context) error {
	h.slots[client.Current] = h.slots[client.Pending]
	delete(h.slots, client.Pending)
	return nil
}

// A KMS or an HSM takes the folder's place by three methods.
func ExampleKeys() {
	d := start()
	defer d.stop()
	ctx := context.Background()
	folder, err := client.OpenFolder(d.folder)
	if err != nil {
		log.Fatal(err)
	}
	defer folder.Close()
	store := &hsm{Folder: folder, slots: map[client.Slot]ed25519.PrivateKey{}}
	c, err := client.Open(ctx, client.Config{Target: d.target, Store: store, Conn: d.nc, Trust: d.trust, KeyMayBeMissing: true})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	// The service moves into the HSM by a Master Reset, and rotates there from then on.
	if _, err := c.Reset(ctx, d.master.Private()); err != nil {
		log.Fatal(err)
	}
	receipt, err := c.Rotate(ctx)
	fmt.Println(receipt.Event, receipt.Sequence, err)
	// Output: REQUEST_COMMITTED 3 <nil>
}
