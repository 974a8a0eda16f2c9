package registry

import (
	"context"
	"errors"

	"omiappreg.org/keyrotation/internal/health"
)

// Parts are what the registry needs to do its work, each with a check, for GET /readyz. While one fails, requests wait.
func (r *Registry) Parts() []health.Part {
	return []health.Part{
		health.Connection(r.cfg.Conn),
		health.Pinged(r.cfg.Store),
		{Name: health.Streams, Check: r.checkStreams},
		{Name: health.Fence, Check: r.checkFence},
	}
}

func (r *Registry) checkStreams(context.Context) error {
	if err := r.Ready(); err != nil {
		return err
	}
	return nil
}

// checkFence fails while nothing is served, since the database may lack what was announced. Services that are behind are held by
// themselves, and the others are served.
func (r *Registry) checkFence(context.Context) error {
	r.fence.mu.Lock()
	defer r.fence.mu.Unlock()
	if !r.fence.compared {
		return errors.New("the database is being compared with the stream of events, and nothing is served before that is done")
	}
	return nil
}
