// Core holds two core services in a module of its own: a ledger that reads the stream of events, and
// the registry, Auth and Billing in one process.
package main

import (
	"context"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
	"omiappreg.org/keyrotation/streams"
)

func main() {
	conn, err := nats.Connect(nats.DefaultURL, nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		log.Fatal(err)
	}
	switch {
	case len(os.Args) == 1:
		err = ledger(context.Background(), js, events.Trust{})
	case os.Args[1] == "migrations":
		err = migrations()
	default:
		err = all(context.Background(), js)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// ledger keeps the keyrings of all services, and prints which key is current.
func ledger(ctx context.Context, js jetstream.JetStream, trust events.Trust) error {
	consumer, err := js.CreateOrUpdateConsumer(ctx, streams.Invalidations, streams.SubscriberConsumer("ledger"))
	if err != nil {
		return err
	}
	keyrings := map[events.Target]keyring.Keyring{}
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		event, err := trust.Invalidation(m.Subject(), m.Data())
		if err != nil {
			log.Print(err)
			return
		}
		keyrings[event.Target] = keyrings[event.Target].Apply(&event)
		if key, ok := keyrings[event.Target].Current(); ok {
			log.Print(event.Target, key.PublicKey, keyrings[event.Target].At(key, time.Now().Unix()))
		}
		if err := m.Ack(); err != nil {
			log.Print(err)
		}
	})
	if err != nil {
		return err
	}
	defer consuming.Stop()
	<-ctx.Done()
	return nil
}
