package client

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"omiappreg.org/keyrotation/events"
)

// command is what a method asks run to do.
type command struct {
	op    op
	draft events.Draft  // of change: Kind and GracePeriod
	by    crypto.Signer // of change: the Master Key; nil: the current key
	done  chan result   // buffered: run does not wait for the caller
	// gone is closed when the caller stops waiting. A command that has not begun is not begun then.
	gone  <-chan struct{}
	begun atomic.Bool
}

type op int

const (
	opChange op = iota
	opPromote
	opSettle
)

type result struct {
	receipt events.Receipt
	err     error
}

// atOnce reports whether a change ends the old key with the commit.
func (cmd *command) atOnce() bool {
	return cmd.draft.Kind == events.Reset || cmd.draft.GracePeriod != nil && *cmd.draft.GracePeriod == 0
}

// abandoned reports whether its caller has stopped waiting.
func (cmd *command) abandoned() bool {
	select {
	case <-cmd.gone:
		return true
	default:
		return false
	}
}

// Rotate gives the service a new key, and returns the registry's receipt. The old key goes on
// signing until everyone has heard of the new one, or half of the registry's grace period is over.
// With [Config.JWKS] it goes on for some time after that.
//
// If a rotation is already under way, Rotate completes it and returns its receipt. The same holds
// for a pending key that has become the registry's current key. When ctx ends, only the waiting
// ends: the error is [ErrNotStored] or [ErrNoAnswer], and the change goes on, after a restart too;
// or it is [ErrNotBegun]. [*RefusedError] is the registry's refusal. If the registry could not be
// believed, nothing is sent, and the error is [ErrUntrusted]. [ErrLocked] means that another
// process changes the keys of the store.
func (c *Client) Rotate(ctx context.Context) (events.Receipt, error) {
	return c.do(ctx, &command{draft: events.Draft{Kind: events.Rotation}})
}

// RotateEmergency is [Client.Rotate] for a key that may be in other hands: with the commit, every
// earlier key of the service ends, including those in grace. Sign waits meanwhile. A thief who has
// the current key can rotate as well, and may be faster: then only [Client.Reset] helps.
func (c *Client) RotateEmergency(ctx context.Context) (events.Receipt, error) {
	return c.do(ctx, &command{draft: events.Draft{Kind: events.Rotation, GracePeriod: new(int64), EndEarlier: true}})
}

// RotateWithGrace is [Client.Rotate] with a grace period of its own, in whole seconds, at most the
// registry's. 0 ends the old key with the commit, and Sign waits meanwhile. Keys that are in grace
// already stay so: [Client.RotateEmergency] ends them all. With [Config.JWKS] the error may be
// [ErrShortGrace].
func (c *Client) RotateWithGrace(ctx context.Context, grace time.Duration) (events.Receipt, error) {
	if grace < 0 || grace%time.Second != 0 {
		return events.Receipt{}, fmt.Errorf("a grace period is whole seconds, 0 or more, not %s", grace)
	}
	seconds := int64(grace / time.Second)
	return c.do(ctx, &command{draft: events.Draft{Kind: events.Rotation, GracePeriod: &seconds}})
}

// Reset is a Master Reset (docs/protocol.md §5.2): master, the developer's key, gives the service a
// new key instead of one that is lost or compromised. All earlier keys end at once. Otherwise it is
// like [Client.Rotate].
func (c *Client) Reset(ctx context.Context, master crypto.Signer) (events.Receipt, error) {
	return c.do(ctx, &command{draft: events.Draft{Kind: events.Reset}, by: master})
}

// Resume returns the answer to the change that was under way when the client was opened, as the
// method that began it would have, and its kind; no answer if there was none. Call it once.
//
// A pending key whose request is not in the store may be the registry's current key: then its
// change is the one that was under way, and its receipt, made from the registry's record, has no
// RequestNonce. Only the registry knows, so Resume waits for it in that case.
func (c *Client) Resume(ctx context.Context) (kind events.RequestKind, receipt events.Receipt, err error) {
	if c.found == nil {
		return "", events.Receipt{}, nil
	}
	receipt, err = c.await(ctx, c.found)
	if errors.Is(err, errNotCurrent) {
		return "", events.Receipt{}, nil
	}
	return c.found.draft.Kind, receipt, err
}

// errNotCurrent is Resume's result for a pending key that is not the registry's current one.
var errNotCurrent = errors.New("the pending key is not the registry's current key")

// Promote makes the new key of a committed change the one that signs, without waiting for others to
// hear of it.
func (c *Client) Promote(ctx context.Context) error {
	_, err := c.do(ctx, &command{op: opPromote})
	return err
}

// Settle waits until no change is under way and the registry has been asked: the key that signs is
// its current one, if it answers. [ErrForeignKey] says that it is not.
func (c *Client) Settle(ctx context.Context) error {
	_, err := c.do(ctx, &command{op: opSettle})
	return err
}

func (c *Client) do(ctx context.Context, cmd *command) (events.Receipt, error) {
	cmd.done, cmd.gone = make(chan result, 1), ctx.Done()
	select {
	case c.commands <- cmd:
	case <-c.stopped:
		return events.Receipt{}, ErrClosed
	case <-ctx.Done():
		return events.Receipt{}, c.giveUp(cmd, ctx.Err())
	}
	return c.await(ctx, cmd)
}

func (c *Client) await(ctx context.Context, cmd *command) (events.Receipt, error) {
	select {
	case r := <-cmd.done:
		return r.receipt, r.err
	case <-c.stopped:
		return events.Receipt{}, ErrClosed
	case <-ctx.Done():
		return events.Receipt{}, c.giveUp(cmd, ctx.Err())
	}
}

// giveUp says how far the change is that its caller no longer waits for.
func (c *Client) giveUp(cmd *command, why error) error {
	var fault error
	if last := c.lastFault.Load(); last != nil {
		fault = *last
	}
	switch {
	case cmd.op != opChange:
		return why
	case !cmd.begun.Load():
		return errors.Join(fmt.Errorf("%w (%w)", ErrNotBegun, why), fault)
	case c.stored.Load():
		return fmt.Errorf("%w (%w)", ErrNoAnswer, why)
	case errors.Is(fault, ErrNotStored):
		return fmt.Errorf("%w (%w)", fault, why)
	default:
		return fmt.Errorf("%w (%w)", ErrNotStored, why)
	}
}
