// Package health says whether a process can do its work, and which of its parts can't.
//
// A process names its parts, each with a check. One run asks all of them, concurrently and each
// with a deadline. So a part that hangs is named, and doesn't hang the caller. Callers share runs:
// any number of probes costs no more than one.
//
//	GET /readyz ──┐
//	GET /readyz ──┼──▶ one run ──▶ broker · database · streams · consumer · fence
//	the process ──┘       │        outbox · requests · caught_up
//	                      └──▶ the log: a line when a part starts to fail, and one when it is back
package health

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// The names of parts, in answers, logs, metrics and docs/operations.md.
const (
	Broker       = "broker"    // the connection to NATS
	Database     = "database"  // it answers and can be written
	Streams      = "streams"   // they exist, and take messages
	Consumer     = "consumer"  // the durable exists and is pulled from
	RestoreGuard = "fence"     // the database has been compared with the stream of events
	Outbox       = "outbox"    // committed changes get published
	Requests     = "requests"  // nothing in hand hangs
	CaughtUp     = "caught_up" // the stream has been read up to the start of the process
)

// Part is a part of a process that can fail by itself.
type Part struct {
	Name string
	// Check returns nil while the part works. Callers see the error's text, and a caller may be a
	// stranger. Use the cause of a [Problem] for details that only the log should have.
	Check func(context.Context) error
}

// Checks returns parts in the form in which packages that other modules import show them.
func Checks(parts []Part) iter.Seq2[string, func(context.Context) error] {
	return func(yield func(string, func(context.Context) error) bool) {
		for _, p := range parts {
			if !yield(p.Name, p.Check) {
				return
			}
		}
	}
}

// Parts is the inverse of [Checks].
func Parts(checks iter.Seq2[string, func(context.Context) error]) (parts []Part) {
	for name, check := range checks {
		parts = append(parts, Part{Name: name, Check: check})
	}
	return parts
}

// Errors of a check say more of a [Problem].
var (
	ErrDegraded = errors.New("the process works without it")
	ErrRestart  = errors.New("a restart is the remedy")
)

// Problem says what is wrong with a part.
type Problem struct {
	Text  string // for everyone
	Cause error  // for the log; nil if the text says everything
	// Restart says that a restart is the remedy: GET /livez fails, too.
	Restart bool
	// Remark says that the part deserves a line, but has not failed: the process does its work
	// without it.
	Remark bool
}

// Error implements error.
func (p *Problem) Error() string { return p.Text }

// Is reports whether the target says of the problem what its fields say.
func (p *Problem) Is(target error) bool {
	return target == ErrDegraded && p.Remark || target == ErrRestart && p.Restart
}

// Unwrap returns the cause.
func (p *Problem) Unwrap() error { return p.Cause }

// Because returns a problem with a cause that only the log names.
func Because(cause error, text string) error { return &Problem{Text: text, Cause: cause} }

// AsRemark returns the error as a line that is no failure. Nil stays nil.
func AsRemark(err error) error {
	if err == nil {
		return nil
	}
	p := problemOf(err)
	p.Remark = true
	return &p
}

func problemOf(err error) Problem {
	if p := (*Problem)(nil); errors.As(err, &p) {
		return *p
	}
	return Problem{Text: strings.ReplaceAll(err.Error(), "\n", "; ")} // joined errors
}

const (
	checkWithin = 2 * time.Second
	keptFor     = 500 * time.Millisecond // a report that is not older answers the next caller, too
	// startsWithin is how long the parts of a starting process may fail before the log says so.
	startsWithin = 10 * time.Second
)

// Checker runs the checks. It is safe for concurrent use.
type Checker struct {
	log   *slog.Logger
	parts []*part

	mu      sync.Mutex
	running *run // nil before the first run
	last    Report
	started time.Time
}

// run is one run of all checks.
type run struct {
	done   chan struct{}
	ended  time.Time // guarded by Checker.mu; zero while it runs
	report Report
}

// part is a part with its latest state.
type part struct {
	Part

	mu       sync.Mutex
	asked    time.Time // start of a check that has not returned; otherwise zero
	answered chan error

	// Only the current run uses these:
	failing time.Time // since when; zero while it works
	told    bool      // the log has said so
}

// New returns a checker of these parts.
func New(log *slog.Logger, parts ...Part) *Checker {
	c := &Checker{log: log, last: Report{Live: true}, started: time.Now()}
	for _, p := range parts {
		c.parts = append(c.parts, &part{Part: p})
	}
	return c
}

// Report returns the state of the parts: from the run under way, from one that has just ended, or
// from a new one. It takes no longer than a check may. It ends early with ctx, which does not end
// the run.
func (c *Checker) Report(ctx context.Context) (Report, error) {
	c.mu.Lock()
	r := c.running
	if r == nil || !r.ended.IsZero() && time.Since(r.ended) >= keptFor {
		r = &run{done: make(chan struct{})}
		c.running = r
		go c.run(context.WithoutCancel(ctx), r)
	}
	c.mu.Unlock()
	select {
	case <-r.done:
		return r.report, nil
	case <-ctx.Done():
		return Report{}, fmt.Errorf("check the parts of the process: %w", ctx.Err())
	}
}

// Last returns the latest known state of the parts, at once: a process must not be restarted
// because something else hangs.
func (c *Checker) Last() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Watch runs the checks periodically until ctx ends, so that the log names failures even if there
// are no probes.
func (c *Checker) Watch(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if _, err := c.Report(ctx); err != nil {
			return // the process is ending
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// run checks all parts, and logs the changes.
func (c *Checker) run(ctx context.Context, r *run) {
	r.report = Report{Ready: true, Live: true}
	results := make([]*Problem, len(c.parts))
	var asking sync.WaitGroup
	for i, p := range c.parts {
		asking.Go(func() { results[i] = p.ask(ctx) })
	}
	asking.Wait()
	for i, p := range c.parts {
		r.report.add(p.Name, results[i])
		c.tell(p, results[i])
	}
	c.mu.Lock()
	r.ended, c.last = time.Now(), r.report
	c.mu.Unlock()
	close(r.done)
}

// ask returns what is wrong with the part. If a check hangs, no other check of this part begins
// before it has returned, and no caller waits for it again.
func (p *part) ask(ctx context.Context) *Problem {
	p.mu.Lock()
	if p.asked.IsZero() {
		p.asked, p.answered = time.Now(), make(chan error, 1)
		go p.check(ctx, p.answered)
	}
	asked, answered := p.asked, p.answered
	p.mu.Unlock()
	deadline := time.NewTimer(time.Until(asked.Add(checkWithin)))
	defer deadline.Stop()
	select {
	case err := <-answered:
		switch {
		case err == nil:
			return nil
		case time.Since(asked) >= checkWithin && errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(*Problem)):
			return p.silent(asked)
		}
		problem := problemOf(err)
		return &problem
	case <-deadline.C:
		return p.silent(asked)
	}
}

func (p *part) silent(asked time.Time) *Problem {
	return &Problem{Text: fmt.Sprintf("no answer within %v", max(checkWithin, time.Since(asked).Truncate(time.Second)))}
}

func (p *part) check(ctx context.Context, answered chan<- error) {
	ctx, cancel := context.WithTimeout(ctx, checkWithin)
	defer cancel()
	err := p.Check(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = time.Time{}
	answered <- err
}

// tell logs that a part has begun to fail, or works again.
func (c *Checker) tell(p *part, problem *Problem) {
	if problem == nil {
		if p.told {
			c.log.Info("a part of this process works again", "part", p.Name, "failed_for", time.Since(p.failing).Round(time.Millisecond).String())
		}
		p.failing, p.told = time.Time{}, false
		return
	}
	if p.failing.IsZero() {
		p.failing = time.Now()
	}
	if p.told || time.Since(c.started) < startsWithin {
		return
	}
	p.told = true
	args := []any{"part", p.Name, "problem", problem.Text}
	if problem.Cause != nil {
		args = append(args, "error", problem.Cause)
	}
	if problem.Remark {
		c.log.Warn("a part of this process fails, and it works on without it", args...)
		return
	}
	c.log.Warn("not ready: a part of this process fails", args...)
}
