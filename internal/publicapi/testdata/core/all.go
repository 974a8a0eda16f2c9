package main

import (
	"context"
	"errors"
	"io/fs"
	"log"
	"log/slog"
	"net/http"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"omiappreg.org/keyrotation/authsub"
	"omiappreg.org/keyrotation/billingsub"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry"
	"omiappreg.org/keyrotation/schema"
)

// all runs the registry, Auth and Billing until one of them fails, and serves their HTTP APIs.
func all(ctx context.Context, js jetstream.JetStream) error {
	key := events.GenerateSigningKey()
	store, err := registry.OpenStore(ctx, "sqlite:registry.db", slog.Default())
	if err != nil {
		return err
	}
	defer store.Close()
	policy := registry.Policy{Origin: "omiappreg.org", GracePeriod: 10 * time.Minute}
	reg, err := registry.New(registry.Config{Policy: policy, Key: key, Store: store, Conn: js.Conn(), Log: slog.Default()})
	if err != nil {
		return err
	}
	trust, err := events.NewTrust(policy.Origin, key.Public())
	if err != nil {
		return err
	}
	auth, err := authsub.New(ctx, authsub.Config{JetStream: js, DatabaseURL: "sqlite:auth.db", Trust: trust, Log: slog.Default()})
	if err != nil {
		return err
	}
	defer auth.Close()
	billing, err := billingsub.New(ctx, billingsub.Config{JetStream: js, DatabaseURL: "sqlite:billing.db", Trust: trust, Log: slog.Default()})
	if err != nil {
		return err
	}
	defer billing.Close()

	mux := http.NewServeMux()
	for _, routes := range []map[string]http.Handler{reg.Lookup.Routes(), auth.Routes(), billing.Routes()} {
		for pattern, handler := range routes {
			mux.Handle(pattern, handler)
		}
	}
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { ready(w, r, auth) })
	ended := make(chan error, 4)
	for _, run := range []func(context.Context) error{reg.Run, auth.Run, billing.Run} {
		go func() { ended <- run(ctx) }()
	}
	go func() { ended <- http.ListenAndServe("127.0.0.1:8080", mux) }()
	return <-ended
}

// ready answers a readiness probe: 503 unless Auth can answer.
func ready(w http.ResponseWriter, r *http.Request, auth *authsub.Auth) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	for name, check := range auth.Checks() {
		if err := check(ctx); err != nil && !errors.Is(err, authsub.ErrDegraded) {
			http.Error(w, name+": "+err.Error(), http.StatusServiceUnavailable)
			return
		}
	}
}

// migrations lists the migrations that Auth's database gets, for an operator who applies them.
func migrations() error {
	return fs.WalkDir(schema.Auth(), ".", func(path string, _ fs.DirEntry, err error) error {
		log.Print(path)
		return err
	})
}
