package billingsub_test

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/billingsub"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/broker"
	"omiappreg.org/keyrotation/streams"
)

// A Billing Service in one's own program: it hears of a service's key from the stream, and then
// answers whose key it was.
func Example() {
	d, err := newDeployment() // a broker with one event: in production, they are there
	if err != nil {
		log.Fatal(err)
	}
	defer d.stop()
	ctx, cancel := context.WithCancel(context.Background())

	trust, err := events.NewTrust("omiappreg.org", d.registryKey) // from your own configuration
	if err != nil {
		log.Fatal(err)
	}
	billing, err := billingsub.New(ctx, billingsub.Config{
		JetStream:   d.js,
		DatabaseURL: "sqlite:" + filepath.Join(d.folder, "billing.db"),
		Trust:       trust,
		Log:         slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- billing.Run(ctx) }()
	for billing.Ready() != nil { // a server answers its readiness probe by this
		<-time.After(time.Millisecond)
	}

	answer, err := billing.Attribute(ctx, events.AttributeQuery{PublicKey: d.service.Public(), At: time.Now().Unix()})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Result, answer.AppID, answer.ServiceID)
	answer, err = billing.Attribute(ctx, events.AttributeQuery{PublicKey: d.service.Public(), At: 1})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Result, answer.Reason)

	cancel()
	if err := <-ended; err != nil {
		log.Fatal(err)
	}
	if err := billing.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// valid org.example.shop cms
	// invalid not_yet_valid
}

// deployment is a broker whose stream of invalidations has the event by which a service got its key.
type deployment struct {
	folder      string
	js          jetstream.JetStream
	registryKey events.PublicKey
	target      events.Target
	service     events.SigningKey
	broker      *broker.Server
}

func newDeployment() (_ *deployment, err error) {
	registry := events.GenerateSigningKey()
	d := &deployment{registryKey: registry.Public(), service: events.GenerateSigningKey()}
	if d.folder, err = os.MkdirTemp("", "omi-example-"); err != nil {
		return nil, err
	}
	if d.broker, err = broker.Start(broker.Config{StoreDir: filepath.Join(d.folder, "jetstream")}); err != nil {
		return nil, err
	}
	conn, err := nats.Connect(d.broker.URL())
	if err != nil {
		return nil, err
	}
	if d.js, err = jetstream.New(conn); err != nil {
		return nil, err
	}
	ctx := context.Background()
	if _, err := d.js.CreateStream(ctx, streams.InvalidationsConfig()); err != nil {
		return nil, err
	}
	if d.target, err = events.ParseTarget("org.example.shop.cms"); err != nil {
		return nil, err
	}
	now := time.Now().Unix()
	bound := events.Invalidation{
		Origin: "omiappreg.org", Target: d.target, Event: events.ServiceBinding, NewKey: d.service.Public(),
		GracePeriodExpiry: now, Timestamp: now, Nonce: events.NewNonce(), Sequence: 1,
	}
	_, err = d.js.Publish(ctx, bound.Subject(), bound.Sign(registry))
	return d, err
}

func (d *deployment) stop() {
	d.js.Conn().Close()
	d.broker.Shutdown()
	_ = os.RemoveAll(d.folder)
}
