// Package keychange changes a service's keys, as `omi bind`, `rotate`, `reset` and `revoke` do. A
// change that a crash interrupted continues when the same command runs again.
package keychange

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/inspect"
	"omiappreg.org/keyrotation/internal/pin"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

// change is one command's change of a service's key.
type change struct {
	session.Connection
	StoreFlags
	target events.Target
	kind   events.RequestKind
	grace  *time.Duration // the one asked for; nil: the registry's own
	atOnce bool
	// emergency ends the keys that are in grace too.
	emergency bool
	jwks      bool       // wait for caches of the JWK Set
	saved     *SavedKeys // of --new-key; nil: make a new key
	// Returns why the key store may not be used; nil: the registry decides.
	fits func(context.Context, *session.Session) error
	done string // what happened to the service
	// Which keys have ended, if the old key ends at once.
	ended string
	ask   func(context.Context, *client.Client) (events.Receipt, error)

	beforeSend string // a command

	began     time.Time
	applied   map[string]float64 // milliseconds from the start, by durable
	committed float64            // the same; 0: committed before this command
	sent      bool               // by this command
	promoting atomic.Bool        // the answer is there, and the new key is about to take its place
}

// run opens the key store, continues what was under way there, makes the change unless that
// was it, and waits as --wait says.
func run(c *change) error {
	// The reader of the output may leave; that must not end a change halfway. The command of
	// --before-send doesn't inherit this.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return c.With(0, func(ctx context.Context, s *session.Session) error {
		store, err := c.store()
		if err != nil {
			return process.Usagef("--key: %w", err)
		}
		if c.fits != nil {
			if err := c.fits(ctx, s); err != nil {
				return err
			}
		}
		if err := pin.CheckRegistry(c.target, s.Trust.Origin()); err != nil {
			return err
		}
		if c.saved.sameKey() {
			return c.already(ctx, s)
		}
		if c.beforeSend != "" {
			locked, release, err := c.save(ctx, store)
			if err != nil {
				return err
			}
			store = locked
			defer func() { _ = release() }() // the process ends
		}
		c.began, c.applied = time.Now(), map[string]float64{}
		k, err := client.Open(ctx, client.Config{
			Target: c.target, Store: store, Conn: s.Conn, Trust: s.Trust, Notify: c.tell,
			KeyMayBeMissing: c.kind == events.Reset, JWKS: c.jwks, Exclusive: true,
		})
		if err != nil {
			return process.Usagef("--key: %w", err)
		}
		defer k.Close()
		receipt, err := c.change(ctx, s, k)
		if err != nil {
			return c.failed(receipt, err)
		}
		pin.Advance(c.target, receipt)
		if c.jwks && !c.atOnce && !c.JSON {
			say("  the old key signs until no cache has an older JWK Set: %s and a little more\n", s.KeptJWKS())
		}
		if err := c.promote(ctx, k); err != nil {
			return err
		}
		return c.report(ctx, s, receipt)
	})
}

// promote waits until the new key has taken its place: as soon as possible, or when every durable
// has applied the change.
func (c *change) promote(ctx context.Context, k *client.Client) error {
	c.promoting.Store(true)
	promote, bounded := k.Settle, ctx
	if c.Wait != waitPropagated {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		promote = k.Promote
	}
	if promote(bounded) == nil {
		return nil
	}
	const next = "the registry has committed the change, and %s still holds the old key; run the same command again to continue"
	if ctx.Err() != nil {
		return process.Unreachable(fmt.Errorf("interrupted: "+next, client.KeyFile(c.Key)))
	}
	return process.Refused(fmt.Errorf(next, client.KeyFile(c.Key))) // the failure was reported
}

// change returns the receipt of what was asked for, which may be the change that was under way.
func (c *change) change(ctx context.Context, s *session.Session, k *client.Client) (events.Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	kind, receipt, err := k.Resume(ctx)
	if kind != "" && err == nil && c.committed == 0 && !receipt.RequestNonce.IsZero() && !c.JSON {
		say("Continuing the change that was under way: the registry has committed it.\n")
	}
	atOnce := receipt.GracePeriodExpiry <= receipt.Timestamp
	switch {
	case errors.As(err, new(*client.RefusedError)):
		// It is over, and the new request asks for the same key.
	case err != nil:
		return receipt, err
	case kind == c.kind && c.emergency && c.leavesGrace(ctx, s):
		// As the request that was under way does.
	case c.kind == events.Reset && c.savesKey() && kind != "" && receipt.RequestNonce.IsZero():
		// The saved key is the current one, which a client takes for a rotation.
		return receipt, c.alreadyReset(ctx, s)
	case kind == c.kind && receipt.RequestNonce.IsZero() && (atOnce || !c.atOnce):
		c.tellCurrent()
		return receipt, nil
	case kind == c.kind && c.atOnce == atOnce:
		c.tellGrace(receipt)
		return receipt, nil
	}
	return c.ask(ctx, k)
}

// tellGrace says that the old key of the change that was under way stays valid for as long as that
// change asked for.
func (c *change) tellGrace(receipt events.Receipt) {
	has := time.Duration(receipt.GracePeriodExpiry-receipt.Timestamp) * time.Second
	if c.grace != nil && has != *c.grace && !c.JSON {
		say("Its grace period is %s, as was asked for then. %s needs another rotation.\n", has, *c.grace)
	}
}

// tell shows each step as it happens. The client reports one after the other.
func (c *change) tell(e client.Event) {
	after := float64(e.At.Sub(c.began).Microseconds()) / 1000
	switch e.Kind {
	case client.Requested:
		c.sent = true
	case client.Resumed:
		c.sent = true
		if !c.JSON {
			say("Continuing the request that was under way.\n")
		}
	case client.Committed:
		if !c.sent { // sent before this command
			return
		}
		c.committed = after
		c.line(after, "committed by the registry")
	case client.Applied:
		c.applied[e.Durable] = after
		c.line(after, "applied by "+e.Durable)
	case client.Tightened, client.Exposed, client.Redated:
		printable.Fprintf(os.Stderr, "omi: %v\n", e.Err)
	case client.Retrying:
		if c.promoting.Load() { // before, it is the command's error if it stays so
			printable.Fprintf(os.Stderr, "omi: trying again: %v\n", process.Plain(e.Err))
		}
	}
}

func (c *change) line(after float64, what string) {
	if c.Wait == waitPropagated && !c.JSON {
		say("  +%8.2f ms  %s\n", after, what)
	}
}

// say reports progress, and ignores write errors: the command's result is printed at the end, or
// its error is.
func say(format string, args ...any) { _ = process.Print(format, args...) }

// failed gives a client's error its exit code.
func (c *change) failed(receipt events.Receipt, err error) error {
	if errors.As(err, new(*client.RefusedError)) {
		err = printReceipt(c.Connection, receipt, "")
		if by := receipt.Reason; c.kind == events.Rotation && (by == events.InvalidSignature || by == events.SupersededKey) {
			err = fmt.Errorf("%w Whose is it? omi doctor %s --key %s", err, session.FlagsOf(c.target), c.Key)
		}
		return err
	}
	// The key was changed just now: withSession has asked, too.
	if errors.Is(err, client.ErrUntrusted) {
		return process.Refused(err)
	}
	if errors.Is(err, client.ErrShortGrace) {
		return process.Usagef("--grace-period: nothing was sent: %w", err)
	}
	for _, unavailable := range []error{client.ErrNotStored, client.ErrNoAnswer, client.ErrNotBegun, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, unavailable) {
			return session.Unanswered(err)
		}
	}
	return process.Usagef("--key: nothing was sent: %w", err)
}

// propagatedJSON is a receipt with the times until the change was applied.
type propagatedJSON struct {
	inspect.ReceiptJSON `json:",inline"`
	// absent: committed before this command
	CommittedMS float64            `json:"committed_ms,omitzero"`
	AppliedMS   map[string]float64 `json:"applied_ms"`
	Propagated  bool               `json:"propagated"`
}

// report prints the receipt and, if the command waited, which durables have not applied the change.
func (c *change) report(ctx context.Context, s *session.Session, receipt events.Receipt) error {
	done := fmt.Sprintf("%s is %s; its new key is in %s", c.target, c.done, c.place())
	var late []string
	var err error
	if c.Wait == waitPropagated {
		late, err = c.late(ctx, s, receipt.Sequence)
	}
	grace := c.inGrace(ctx, s)
	view := inspect.ReceiptView(receipt)
	view.StillAccepted = grace
	switch {
	case c.JSON && c.Wait == waitPropagated:
		view := propagatedJSON{view, c.committed, c.applied, err == nil && len(late) == 0}
		err = errors.Join(err, unsaid(done, process.PrintJSON(view)))
	case c.JSON:
		return unsaid(done, process.PrintJSON(view))
	default:
		ended := ""
		if c.atOnce {
			ended = fmt.Sprintf("  %s\n%s  verifiers with an older JWK Set may accept an ended key for %s, as long as they may keep a set\n",
				c.ended, stillAccepted(grace), s.KeptJWKS())
		}
		err = errors.Join(err, unsaid(done, process.Print("%s%s", inspect.ReceiptText(receipt, done), printable.Composed(ended+c.note()))))
	}
	if err == nil && len(late) > 0 {
		err = process.Unreachable(fmt.Errorf("the new key signs now, and %s has not applied it yet: omi doctor says what is wrong there",
			strings.Join(late, ", ")))
	}
	return err
}

// late returns the durables that have not applied the change.
func (c *change) late(ctx context.Context, s *session.Session, sequence int64) (late []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	record, err := s.Record(ctx, c.target)
	if err != nil {
		return nil, fmt.Errorf("the new key signs now, but it is not known which durables have applied it: %w", err)
	}
	if record.Sequence > sequence {
		return nil, process.Refused(fmt.Errorf("another change came meanwhile, sequence %d: omi history shows it", record.Sequence))
	}
	for durable, applied := range record.Propagation {
		if _, told := c.applied[durable]; !applied && !told {
			late = append(late, durable)
		}
	}
	slices.Sort(late)
	return late, nil
}

// unsaid is the error of a change that is committed and could not be printed.
func unsaid(done string, err error) error {
	if err != nil {
		err = fmt.Errorf("%s, and that could not be printed: %w", done, err)
	}
	return err
}

// leavesGrace reports whether the service has keys in grace, if that is known.
func (c *change) leavesGrace(ctx context.Context, s *session.Session) bool {
	record, err := s.Record(ctx, c.target)
	return err != nil || len(record.Grace) > 0
}

// inGrace returns the keys that are still accepted after a change that has ended the old key at
// once. (Any other change's receipt says so itself.) nil: not known, which it reports.
func (c *change) inGrace(ctx context.Context, s *session.Session) []events.GraceKey {
	if !c.atOnce {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	record, err := s.Record(ctx, c.target)
	if err != nil {
		printable.Fprintf(os.Stderr, "omi: the change is done; it is not known which earlier keys are still accepted (%v): omi status shows them\n", process.Plain(err))
		return nil
	}
	return record.Grace
}

// stillAccepted names the keys in grace.
func stillAccepted(grace []events.GraceKey) string {
	var text strings.Builder
	for _, key := range grace {
		printable.Fprintf(&text, "  still accepted, in grace: %s until %s\n", key.PublicKey, printable.Date(key.Expires))
	}
	if len(grace) > 0 {
		text.WriteString("  omi rotate --emergency ends every earlier key\n")
	}
	return text.String()
}
