package bench

import (
	"context"
	"fmt"
	"time"

	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/stack"
	"omiappreg.org/keyrotation/registry"
)

// bindBefore publishes the bindings with a broker that is stopped before the stack's starts on its
// streams. So the services look as if they had existed for a while: for two minutes after its last
// message, nats-server keeps the subjects of each of its files on its heap, and the garbage
// collector of the whole process would mark them.
func (b *run) bindBefore(ctx context.Context) error {
	if b.flags.NATSURL != "" {
		return nil // the broker is not ours
	}
	key, err := stack.ReadOrCreate(b.folder, stack.RegistryKeyFile)
	if err != nil {
		return err
	}
	first, err := stack.OpenBroker(ctx, b.cfg)
	if err != nil {
		return err
	}
	defer first.Close()
	if err := b.openStreams(ctx, first); err != nil {
		return err
	}
	return b.publishBindings(ctx, key)
}

// bind gives all services their first keys. It publishes the events, unless they are there. The
// registry takes them into its database as after the loss of one, and the subscribers read them as
// new ones do, one after the other. It returns how many events a second the slower one applied.
func (b *run) bind(ctx context.Context) (caughtUp float64, err error) {
	if b.flags.NATSURL != "" {
		if err := b.publishBindings(ctx, b.stack.Key); err != nil {
			return 0, err
		}
	}
	b.progress.phase("the registry's database", -1)
	trust, err := b.stack.Trust(b.cfg)
	if err != nil {
		return 0, err
	}
	recovered, err := b.stack.Store.Admin().Recover(ctx, registry.Recovery{JetStream: b.js, Trust: trust, Key: b.stack.Key, Log: b.log})
	if err != nil {
		return 0, err
	}
	if recovered.Changes != b.load.Bindings() {
		return 0, fmt.Errorf("of %d services only %d are in the registry's database", b.load.Bindings(), recovered.Changes)
	}
	for _, part := range []struct {
		name  string
		run   process.Actor
		bound func() int64
	}{
		{Auth, b.stack.Auth.Run, b.recorder.BoundByAuth},
		{Billing, b.stack.Billing.Run, b.recorder.BoundByBilling},
	} {
		b.progress.phase(part.name+" catches up", b.load.Bindings())
		began := time.Now()
		b.start(ctx, part.name, part.run)
		for part.bound() < int64(b.load.Bindings()) {
			if err := b.look(ctx, catchUpLookEvery, part.bound); err != nil {
				return 0, err
			}
		}
		speed := float64(b.load.Bindings()) / time.Since(began).Seconds()
		if caughtUp == 0 || speed < caughtUp {
			caughtUp = speed
		}
	}
	return caughtUp, b.warmUp(ctx)
}

// look waits a little, and shows the progress.
func (b *run) look(ctx context.Context, after time.Duration, done func() int64) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(after):
		b.progress.set(done())
		return nil
	}
}

// warmUp runs a registry once without requests, because its first start compares its database with
// the stream of events.
func (b *run) warmUp(ctx context.Context) error {
	b.progress.phase("the registry compares database and stream", -1)
	cfg := b.cfg
	cfg.Metrics = nil
	first, err := b.stack.NewRegistry(cfg)
	if err != nil {
		return err
	}
	defer b.start(ctx, Registry, first.Run)()
	return b.await(ctx, first.Ready)
}

func (b *run) await(ctx context.Context, ready func() error) error {
	for ready() != nil {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(catchUpLookEvery):
		}
	}
	return nil
}
