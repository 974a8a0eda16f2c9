package registry_test

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

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/broker"
	"omiappreg.org/keyrotation/registry"
)

// A registry in one's own program: a developer's app is known to it, and binds its first service.
func Example() {
	folder, err := os.MkdirTemp("", "omi-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(folder)
	server, err := broker.Start(broker.Config{StoreDir: filepath.Join(folder, "jetstream")}) // in production it is a cluster
	if err != nil {
		log.Fatal(err)
	}
	defer server.Shutdown()
	conn, err := nats.Connect(server.URL(), nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	ctx, cancel := context.WithCancel(context.Background())
	quiet := slog.New(slog.DiscardHandler)
	store, err := registry.OpenStore(ctx, "sqlite:"+filepath.Join(folder, "registry.db"), quiet)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	target, err := events.ParseTarget("org.example.shop.cms")
	if err != nil {
		log.Fatal(err)
	}
	master := events.GenerateSigningKey() // the developer's
	if err := store.Admin().AddApp(ctx, registry.App{AppID: target.App, MasterPublicKey: master.Public()}, time.Now().Unix()); err != nil {
		log.Fatal(err)
	}
	committed := make(chan events.Invalidation, 1)
	reg, err := registry.New(registry.Config{
		Policy:    registry.Policy{Origin: "omiappreg.org"},
		Key:       events.GenerateSigningKey(), // in production it is in a file, and the same each time
		Store:     store,
		Conn:      conn,
		Committed: func(batch []events.Invalidation) { committed <- batch[0] },
		Log:       quiet,
	})
	if err != nil {
		log.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- reg.Run(ctx) }()
	for reg.Ready() != nil { // a server answers its readiness probe by this
		<-time.After(time.Millisecond)
	}

	request := events.Draft{
		Kind: events.Binding, Target: target, NewKey: events.GenerateSigningKey(),
		Timestamp: time.Now().Unix(), Nonce: events.NewNonce(),
	}
	if err := publish(ctx, conn, request, master); err != nil {
		log.Fatal(err)
	}
	event := <-committed
	fmt.Println(event.Event, "of", event.Target, "with sequence", event.Sequence)
	record, err := reg.Lookup.Service(ctx, target)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(record.Status, record.Current.PublicKey == request.NewKey.Public())

	cancel()
	if err := <-ended; err != nil {
		log.Fatal(err)
	}
	// Output:
	// SERVICE_BINDING of org.example.shop.cms with sequence 1
	// active true
}

// publish sends a request, as any developer's tool does.
func publish(ctx context.Context, conn *nats.Conn, request events.Draft, master events.SigningKey) error {
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	message, err := request.Sign(master)
	if err != nil {
		return err
	}
	_, err = js.Publish(ctx, request.Subject(), message, jetstream.WithMsgID(request.MsgID()))
	return err
}
