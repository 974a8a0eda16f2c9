// Domain is a small Domain Service in a module of its own: it keeps its key, signs its requests, and
// serves only callers that the registry vouches for.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
)

func main() {
	if err := run(context.Background(), os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, name, registryKey string) error {
	target, err := events.ParseTarget(name)
	if err != nil {
		return err
	}
	key, err := events.ParsePublicKey(registryKey)
	if err != nil {
		return err
	}
	trust, err := events.NewTrust("omiappreg.org", key)
	if err != nil {
		return err
	}
	conn, err := nats.Connect(nats.DefaultURL, nats.MaxReconnects(-1))
	if err != nil {
		return err
	}
	defer conn.Close()
	keys, err := client.OpenFolder("keys")
	if err != nil {
		return err
	}
	defer keys.Close()
	c, err := client.Open(ctx, client.Config{Target: target, Store: keys, Conn: conn, Trust: trust})
	if err != nil {
		return err
	}
	defer c.Close()
	go func() {
		err := c.AutoRotate(ctx, client.Schedule{Every: 24 * time.Hour, Jitter: 0.1})
		if refused := (*client.RefusedError)(nil); errors.As(err, &refused) {
			log.Print("refused: ", refused.Receipt.Reason)
		}
	}()

	verifier, err := client.NewVerifier(client.VerifierConfig{Conn: conn, Trust: trust})
	if err != nil {
		return err
	}
	go func() { log.Print(verifier.Run(ctx)) }()
	guard := client.NewGuard(client.GuardConfig{Checker: verifier})
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, _ := client.CallerFrom(r.Context())
		fmt.Fprintln(w, "hello,", caller.Target)
	})
	return http.ListenAndServe("127.0.0.1:8090", guard.RequireSignature("localhost:8090")(hello))
}
