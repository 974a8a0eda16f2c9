package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"omiappreg.org/keyrotation/internal/health"
)

// Parts are the parts that the registry needs, each with a check, for GET /readyz. While one fails,
// requests wait.
func (r *Registry) Parts() []health.Part {
	return []health.Part{
		health.Connection(r.cfg.Conn),
		health.Pinged(r.cfg.Store),
		{Name: health.Streams, Check: r.checkStreams},
		{Name: health.Consumer, Check: r.checkConsumer},
		{Name: health.Fence, Check: r.checkFence},
		{Name: health.Outbox, Check: r.checkOutbox},
		{Name: health.Requests, Check: r.inHand.Check},
	}
}

// checkStreams fails while a stream is missing or sealed, or while the broker has no space for what
// the registry publishes. Another part reports a broker that is away. While the registry starts,
// checkStreams says what it waits for.
func (r *Registry) checkStreams(context.Context) error {
	if !r.cfg.Conn.IsConnected() {
		return nil
	}
	if err := r.Ready(); err != nil {
		return err
	}
	return r.watch.streamsErr()
}

// checkConsumer fails while no requests come although the broker may be there.
func (r *Registry) checkConsumer(context.Context) error {
	if !r.cfg.Conn.IsConnected() {
		return nil
	}
	return cmp.Or(r.watch.consumerErr(), r.watch.deliveries.Err())
}

// checkFence fails while nothing is served because the database may lack what was announced.
// Services that are behind are on hold one by one, and the others are served.
func (r *Registry) checkFence(context.Context) error {
	r.fence.mu.Lock()
	defer r.fence.mu.Unlock()
	if !r.fence.compared {
		return errors.New("the database is being compared with the stream of events, and nothing is served until that is done")
	}
	return nil
}

// checkOutbox fails while committed changes are not published. The cause names services, so only
// the log has it. Another part reports a database that is away.
func (r *Registry) checkOutbox(ctx context.Context) error {
	late, err := r.backlog.check(ctx)
	switch {
	case err != nil && r.cfg.Store.Ping(ctx) != nil:
		return nil //nolint:nilerr // another part reports it
	case err != nil:
		return health.Because(err, "the database doesn't tell what is in the outbox")
	case late > 0:
		return health.Because(r.relay.err(), fmt.Sprintf("changes are committed but not published, the oldest for %v", late.Round(time.Second)))
	}
	if n := r.relay.passed.count(); n > 0 {
		return health.AsRemark(fmt.Errorf("%d changes can't be announced because the broker refuses a message as it is: see the log", n))
	}
	return nil
}
