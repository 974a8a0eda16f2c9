package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/broker"
	"omiappreg.org/keyrotation/streams"
)

// A receiver lets in whom the registry vouches for, and tells "no" from "I can't say".
func ExampleVerifier() {
	deployment, err := startExampleDeployment()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer deployment.stop()

	// The connection must outlast the broker's absence, and the registry's key comes from your own configuration.
	conn, err := nats.Connect(deployment.url, nats.MaxReconnects(-1))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	trust, err := events.NewTrust("omiappreg.org", deployment.registryKey)
	if err != nil {
		fmt.Println(err)
		return
	}
	verifier, err := client.NewVerifier(client.VerifierConfig{Conn: conn, Trust: trust})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- verifier.Run(ctx) }() // or an actor of an oklog/run group
	defer func() {
		stop()
		if err := <-done; err != nil {
			fmt.Println(err)
		}
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for verifier.Ready() != nil { // until then a server says that it isn't ready
		<-tick.C
	}

	check := func(message []byte, signature events.Signature) {
		answer, err := verifier.Verify(ctx, events.VerifyQuery{Target: deployment.peer, Message: message, Signature: signature})
		switch {
		case err != nil:
			fmt.Println("503:", err) // what is known is too old to answer from: nobody was refused
		case answer.Result == events.Accepted:
			fmt.Println("200: signed by a key that is", answer.Key)
		default:
			fmt.Println("401:", answer.Reason)
		}
	}
	check([]byte("hello"), deployment.peerKey.Sign([]byte("hello")))
	check([]byte("hullo"), deployment.peerKey.Sign([]byte("hello")))
	check([]byte("hello"), deployment.oldKey.Sign([]byte("hello")))
	// Output:
	// 200: signed by a key that is current
	// 401: invalid_signature
	// 200: signed by a key that is grace
}

// exampleDeployment is a broker with the events of one service that has rotated its key.
type exampleDeployment struct {
	url             string
	registryKey     events.PublicKey
	peer            events.Target
	oldKey, peerKey events.SigningKey
	stop            func()
}

func startExampleDeployment() (*exampleDeployment, error) {
	folder, err := os.MkdirTemp("", "omi-example-")
	if err != nil {
		return nil, err
	}
	server, err := broker.Start(broker.Config{StoreDir: folder, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	d := &exampleDeployment{
		url: server.URL(), oldKey: events.GenerateSigningKey(), peerKey: events.GenerateSigningKey(),
		stop: func() { server.Shutdown(); _ = os.RemoveAll(folder) },
	}
	if err := d.publish(context.Background()); err != nil {
		d.stop()
		return nil, err
	}
	return d, nil
}

// publish does what a registry does.
func (d *exampleDeployment) publish(ctx context.Context) (err error) {
	registry, now := events.GenerateSigningKey(), time.Now().Unix()
	d.registryKey = registry.Public()
	if d.peer, err = events.ParseTarget("org.omiappreg.alice.business_app.7f8a9d.cms-article-77"); err != nil {
		return err
	}
	conn, err := nats.Connect(d.url, nats.Timeout(time.Minute))
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	if _, err := js.CreateStream(ctx, streams.InvalidationsConfig()); err != nil {
		return err
	}
	for _, e := range []events.Invalidation{
		{Event: events.ServiceBinding, NewKey: d.oldKey.Public(), GracePeriodExpiry: now, Sequence: 1},
		{
			Event: events.KeyRotation, OldKey: d.oldKey.Public(), NewKey: d.peerKey.Public(),
			GracePeriodExpiry: now + 300, Sequence: 2,
		},
	} {
		e.Origin, e.Target, e.Timestamp, e.Nonce = "omiappreg.org", d.peer, now, events.NewNonce()
		if _, err := js.Publish(ctx, e.Subject(), e.Sign(registry)); err != nil {
			return err
		}
	}
	return nil
}
