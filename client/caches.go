package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// ErrShortGrace means that a grace period ends too soon for [Config.JWKS]: the new key could not
// sign before the earlier JWK Set is out of every cache.
var ErrShortGrace = errors.New("the grace period is too short for a service whose keys are used as a JWK Set")

// cachesEnd returns how long the old key signs although everyone has applied the change. If others
// verify by the registry's JWK Set, that is until no set may be kept that was fetched before the
// commit. It is never after until.
func (c *Client) cachesEnd(ctx context.Context, r *events.ServiceRecord, until deadline) deadline {
	made := c.entry.Committed
	if made.grace() == 0 || !c.cfg.JWKS && made.JWKSMaxAge == nil {
		return deadline{}
	}
	if made.JWKSMaxAge == nil {
		info, err := registryclient.RegistryInfo(ctx, c.cfg.Conn)
		if err != nil {
			c.retrying(ctx, err)
			return until
		}
		made.JWKSMaxAge = &info.JWKSMaxAge
		if err := c.save(ctx, c.entry); err != nil { // the next start asks again
			c.retrying(ctx, err)
		}
	}
	since := time.Since(c.entry.heard)
	// By the clock that made the receipt, and no more than is certain: it counts whole seconds.
	if c.entry.late {
		since = ofSeconds(r.Timestamp-made.Timestamp) - time.Second
	}
	end := deadlineAt(time.Now().Add(ofSeconds(*made.JWKSMaxAge+events.JWKSMargin) - since))
	if end.left() < until.left() {
		return end
	}
	return until
}

// fitsCaches returns [ErrShortGrace] for a rotation whose own grace period would be half over while
// an earlier JWK Set may be kept.
func (c *Client) fitsCaches(ctx context.Context, d *events.Draft) error {
	if !c.cfg.JWKS || d.GracePeriod == nil || *d.GracePeriod == 0 {
		return nil
	}
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	info, err := registryclient.RegistryInfo(asking, c.cfg.Conn)
	if err != nil {
		return fmt.Errorf("%w: ask how long a JWK Set may be kept: %w", ErrNotBegun, err)
	}
	if *d.GracePeriod < info.JWKSGrace() {
		return fmt.Errorf("%w: caches may keep the earlier set for %s, and half of %s is over by then; ask for %s or more, "+
			"or ask for none to get the registry's own", ErrShortGrace, ofSeconds(info.JWKSMaxAge), ofSeconds(*d.GracePeriod), ofSeconds(info.JWKSGrace()))
	}
	return nil
}
