package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
)

const (
	// resendAfter is how long an answer is waited for before the same bytes are sent again. Once
	// they are stored it is twice as long each time, up to resendSeldom: while the registry is
	// unavailable, each would be one more copy in the stream, and the answer is looked for all the
	// time.
	resendAfter  = 5 * time.Second
	resendSeldom = time.Hour
	// askTimeout bounds one question to the registry.
	askTimeout = 2 * time.Second
)

// run executes one state after another until ctx ends.
func (c *Client) run(ctx context.Context) {
	if c.following {
		c.tell(Event{Kind: Follows})
	}
	for ctx.Err() == nil {
		switch {
		case c.entry == nil:
			c.idle(ctx)
		case c.entry.Committed == nil:
			c.request(ctx)
		default:
			c.awaitApplied(ctx)
		}
	}
}

// idle waits for something to do.
func (c *Client) idle(ctx context.Context) {
	if r, known := c.verdict(); known {
		reply(&c.settling, r)
	}
	if len(c.queue) > 0 {
		cmd := c.queue[0]
		c.queue = c.queue[1:]
		c.begin(ctx, cmd)
		return
	}
	check, lead := newTimer(c.checkNext), newTimer(c.leadNext)
	defer check.Stop()
	defer lead.Stop()
	select {
	case <-ctx.Done():
	case cmd := <-c.commands:
		c.accept(cmd)
	case <-c.changed:
		c.reread(ctx)
	case <-c.noticed:
		c.checkBy(time.Now().Add(jittered(noticeWithin)))
	case <-lead.C:
		c.takeOver(ctx)
	case <-check.C:
		c.inspect(ctx)
	}
}

// accept puts a command on its list while no change is under way.
func (c *Client) accept(cmd *command) {
	switch {
	case cmd.op != opSettle && c.following:
		cmd.done <- result{err: fmt.Errorf("%w: that one rotates, and this one follows it", ErrLocked)}
	case cmd.op == opChange:
		c.queue = append(c.queue, cmd)
	default:
		c.settling = append(c.settling, cmd)
		if time.Since(c.checkedAt) > settleFresh {
			c.checkBy(time.Now())
		}
	}
}

// newTimer returns a timer for a time; for the zero time, one that never fires.
func newTimer(at time.Time) *time.Timer {
	if at.IsZero() {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	return time.NewTimer(time.Until(at))
}

func reply(waiting *[]*command, r result) {
	for _, cmd := range *waiting {
		cmd.done <- r
	}
	*waiting = nil
}

// begin puts a new change on the disk: the pending key first, then the request.
func (c *Client) begin(ctx context.Context, cmd *command) {
	if cmd.abandoned() {
		return
	}
	e, err := c.prepare(ctx, cmd)
	switch {
	case err != nil:
		cmd.done <- result{err: err}
	case e == nil && cmd.draft.Kind == events.Rotation && !cmd.draft.EndEarlier && (!cmd.atOnce() || c.entry.Committed.grace() == 0):
		// A pending key has turned out to be the current one: the request is fulfilled.
		c.waiting = append(c.waiting, cmd)
	case e == nil: // that change is finished first
		c.queue = append([]*command{cmd}, c.queue...)
	default:
		reply(&c.waiting, result{err: errNotCurrent})
		c.stored.Store(false)
		cmd.begun.Store(true)
		c.entry, c.waiting = e, append(c.waiting, cmd)
		others := c.queue
		c.queue = nil
		for _, cmd := range others { // they may want the same
			c.join(cmd)
		}
		c.tell(Event{Kind: Requested, Key: e.Request.NewKey})
	}
}

func (c *Client) prepare(ctx context.Context, cmd *command) (*entry, error) {
	if err := c.trusted(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotBegun, err)
	}
	if err := c.fitsCaches(ctx, &cmd.draft); err != nil {
		return nil, err
	}
	pending, err := c.cfg.Store.Signer(ctx, Pending)
	switch {
	case errors.Is(err, ErrNoKey):
		pending, err = c.cfg.Store.Generate(ctx, Pending)
	case err == nil:
		// It was refused, or never sent. Anyone who saw its request may have had it committed
		// since.
		adopted, err := c.check(ctx)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotBegun, err)
		}
		if adopted {
			return nil, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make a new key: %w", err)
	}
	by := cmd.by
	if by == nil {
		if by = c.signing.Load().key; by == nil {
			return nil, ErrNoKey
		}
	}
	draft := cmd.draft
	draft.Target, draft.Timestamp, draft.Nonce, draft.Origin = c.cfg.Target, time.Now().Unix(), events.NewNonce(), c.cfg.Trust.Origin()
	message, err := registryclient.Sign(draft, by, pending)
	if err != nil {
		return nil, err
	}
	e := &entry{
		Target: draft.Target.String(), Kind: draft.Kind, AtOnce: cmd.atOnce(), EndEarlier: draft.EndEarlier, Request: message, by: cmd.by,
	}
	return e, c.save(ctx, e)
}

// trusted returns [ErrUntrusted] if a registry answers whose receipt could not be believed. If none
// answers, that is no reason not to send: the request waits in the stream.
func (c *Client) trusted(ctx context.Context) error {
	if !c.cfg.Conn.IsConnected() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err := c.lookup.Trusted(ctx); errors.Is(err, ErrUntrusted) {
		return err
	}
	return nil
}

func (c *Client) record(ctx context.Context) (events.ServiceRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return c.lookup.ServiceRecord(ctx, c.cfg.Target)
}

// request sends the request until it is answered.
func (c *Client) request(ctx context.Context) {
	if c.entry.resumed {
		c.tell(Event{Kind: Resumed, Key: c.entry.Request.NewKey})
	}
	if c.entry.resumed || c.entry.AtOnce {
		c.hold()
	}
	since, answers, untrusted := time.Now(), make(chan events.Receipt, 1), make(chan error)
	var sender sync.WaitGroup
	defer sender.Wait()
	sending, stop := context.WithCancel(ctx)
	defer stop()
	sender.Go(func() { c.sendUntilAnswered(sending, c.entry, answers, untrusted) })
	release := newTimer(c.release)
	defer release.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case receipt := <-answers:
			c.answered(ctx, &receipt, since)
			return
		// The change goes on when the right registry is back, and its caller must know.
		case err := <-untrusted:
			reply(&c.waiting, result{err: fmt.Errorf("%w: %w", c.unanswered(), err)})
		case <-release.C:
			c.unhold()
		case cmd := <-c.commands:
			c.join(cmd)
		}
	}
}

// join lets a command wait for the change that is under way, if that is what it asks for, or for
// its turn.
func (c *Client) join(cmd *command) {
	for _, list := range []*[]*command{&c.waiting, &c.queue, &c.settling} { // an outage may be long
		*list = slices.DeleteFunc(*list, (*command).abandoned)
	}
	switch {
	case cmd.op != opChange:
		c.settling = append(c.settling, cmd)
	case cmd.draft.Kind == c.entry.Kind && cmd.atOnce() == c.entry.AtOnce && (c.entry.EndEarlier || !cmd.draft.EndEarlier) && c.entry.Committed == nil:
		cmd.begun.Store(true)
		c.waiting = append(c.waiting, cmd)
	default:
		c.queue = append(c.queue, cmd)
	}
}

// unanswered says how far a request without an answer is.
func (c *Client) unanswered() error {
	if c.stored.Load() {
		return ErrNoAnswer
	}
	return ErrNotStored
}

func (c *Client) sendUntilAnswered(ctx context.Context, e *entry, answers chan<- events.Receipt, untrusted chan<- error) {
	m, sender := e.Request, c.sender
	if e.resumed { // otherwise prepare has just asked, and nothing was sent
		sender.Allowed, sender.Again = c.trusted, true
	}
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, resendAfter
	for patience := resendAfter; ctx.Err() == nil; {
		attempt, cancel := context.WithTimeout(ctx, patience)
		receipt, err := sender.Send(attempt, c.cfg.Target, m, func() {
			if !c.stored.Swap(true) {
				c.tell(Event{Kind: Stored, Key: m.NewKey})
			}
		})
		cancel()
		sender.Allowed, sender.Again = c.trusted, true
		if err == nil {
			answers <- receipt
			return
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, ErrNoAnswer) {
			patience = min(2*patience, resendSeldom)
		}
		c.retrying(ctx, err)
		if errors.Is(err, ErrUntrusted) {
			select {
			case untrusted <- err:
			case <-ctx.Done():
			}
		}
		wait(ctx, pause.NextBackOff())
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// answered handles the registry's answer to the request under way, which was waited for since some
// time.
func (c *Client) answered(ctx context.Context, r *events.Receipt, since time.Time) {
	if r.Event == events.RequestCommitted {
		c.commit(ctx, c.commitmentTo(r, since))
		return
	}
	refused := &RefusedError{Receipt: *r}
	redated, err := c.redate(ctx, r)
	if redated {
		return
	}
	if err != nil {
		c.retrying(ctx, fmt.Errorf("date the request by the registry's time: %w", err))
	}
	c.tell(Event{Kind: Refused, Key: c.entry.Request.NewKey, Err: refused})
	endEarlier := c.entry.EndEarlier
	adopted, err := c.drop(ctx, r.Reason)
	if err != nil {
		c.retrying(ctx, err)
	}
	switch {
	case !adopted:
		reply(&c.waiting, result{receipt: *r, err: refused})
	case endEarlier: // its key is current by an earlier request, which has ended no other
		c.queue, c.waiting = slices.Concat(c.waiting, c.queue), nil
	// The very key that was asked for is current, so the request is fulfilled.
	default:
	}
}

// drop ends a refused request, unless its key turns out to be the current one. The key stays
// pending, and is used again: see the package comment. Only a key that can never be ours is
// replaced.
func (c *Client) drop(ctx context.Context, why events.Reason) (adopted bool, err error) {
	if adopted, err = c.check(ctx); adopted {
		return true, nil
	}
	c.entry = nil
	c.unhold()
	c.checkTill = time.Now().Add(replayable)
	c.checkLater(err)
	if why == events.KeyInUse && err == nil {
		_, err = c.cfg.Store.Generate(ctx, Pending)
	}
	return false, errors.Join(err, c.save(ctx, nil))
}

// commit notes that the registry has committed the change.
func (c *Client) commit(ctx context.Context, made *commitment) {
	c.entry.Committed, c.entry.heard = made, time.Now()
	c.tell(Event{Kind: Committed, Key: c.entry.Request.NewKey, Sequence: made.Sequence})
	if err := c.save(ctx, c.entry); err != nil { // the same bytes would get the same receipt
		c.retrying(ctx, err)
	}
}
