package client_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/authsub"
	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/broker"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/registry"
)

// deployment is what the examples run against: a broker, a registry and Auth, as `omi dev` runs them, and one service that
// is bound to the key in its folder.
type deployment struct {
	nc     *nats.Conn
	trust  events.Trust
	target events.Target
	folder string // of the service's key store
	js     jetstream.JetStream
	master events.SigningKey
	ended  []func()
}

func (d *deployment) stop() {
	for i := len(d.ended) - 1; i >= 0; i-- {
		d.ended[i]()
	}
}

func start() *deployment {
	temp := must(os.MkdirTemp("", "omi-example-"))
	d := &deployment{master: events.GenerateSigningKey(), folder: filepath.Join(temp, "keys")}
	d.ended = append(d.ended, func() { _ = os.RemoveAll(temp) })
	log := slog.New(slog.DiscardHandler)
	server := must(broker.Start(broker.Config{Addr: "127.0.0.1:0", StoreDir: filepath.Join(temp, "jetstream"), Log: log}))
	d.ended = append(d.ended, server.Shutdown)
	d.nc = must(nats.Connect(server.URL(), nats.Timeout(time.Minute)))
	d.ended = append(d.ended, d.nc.Close)
	d.js = must(jetstream.New(d.nc))
	d.target = must(events.ParseTarget("org.example.shop.cms"))

	ctx, cancel := context.WithCancel(context.Background())
	store := must(registry.OpenStore(ctx, "sqlite:"+filepath.Join(temp, "registry.db"), log))
	check(store.Admin().AddApp(ctx, registry.App{AppID: d.target.App, MasterPublicKey: d.master.Public()}, time.Now().Unix()))
	key := events.GenerateSigningKey()
	policy := must(registry.Policy{Origin: "omiappreg.org"}.WithDefaults())
	reg := must(registry.New(registry.Config{Policy: policy, Key: key, Store: store, Conn: d.nc, Log: log}))
	d.trust = must(events.NewTrust("omiappreg.org", key.Public()))
	auth := must(authsub.New(ctx, authsub.Config{
		JetStream: d.js, DatabaseURL: "sqlite:" + filepath.Join(temp, "authsub.db"), Trust: d.trust, Log: log,
	}))
	running := make(chan error, 2)
	go func() { running <- reg.Run(ctx) }()
	go func() { running <- auth.Run(ctx) }()
	d.ended = append(d.ended, func() {
		cancel()
		check(<-running)
		check(<-running)
		check(auth.Close())
		check(store.Close())
	})
	for reg.Ready() != nil || auth.Ready() != nil {
		<-time.After(time.Millisecond)
	}
	d.bind(ctx)
	return d
}

// bind gives the service its first key, as `omi bind --key FOLDER/` does.
func (d *deployment) bind(ctx context.Context) {
	store := must(client.OpenFolder(d.folder))
	key := must(store.Generate(ctx, client.Current))
	check(store.Close())
	draft := events.Draft{Kind: events.Binding, Target: d.target, Timestamp: time.Now().Unix(), Nonce: events.NewNonce()}
	message := must(registryclient.Sign(draft, d.master.Private(), key))
	must(registryclient.Sender{JetStream: d.js, Trust: d.trust}.Send(ctx, d.target, message, nil))
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
