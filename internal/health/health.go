// Package health says whether a process can do its work, and which of its parts can't.
//
// A process names its parts, each with a check. One run asks all of them, concurrently and each
// within a deadline, so that a part which hangs is named instead of hanging whoever asks. Callers
// share runs: any number of probes costs no more than one.
//
//	GET /readyz ──┐
//	GET /readyz ──┼──▶ one run ──▶ broker · database · streams · consumer · fence · outbox · requests · caught_up
//	the process ──┘       │
//	                      └──▶ the log: a line when a part starts to fail, and one when it is back
package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// The names of parts, in answers, logs, metrics and docs/operations.md.
const (
	Broker   = "broker"    // the connection to NATS
	Database = "database"  // it answers and can be written
	Streams  = "streams"   // they exist, and take messages
	Consumer = "consumer"  // the durable exists and is pulled from
	Fence    = "fence"     // the database has been compared with the stream of events
	Outbox   = "outbox"    // what is committed gets published
	Requests = "requests"  // nothing in hand hangs
	CaughtUp = "caught_up" // the stream has been read up to the start of the process
)

// Part is a part of a process that can fail by itself.
type Part struct {
	Name string
	// Check returns nil while the part works. The error's text is shown to whoever asks, who may be
	// a stranger: what only the log should say is the cause of a [Problem].
	Check func(context.Context) error
	// Within is how long the check may take. Default 2 s.
	Within time.Duration
}

// Problem is what is wrong with a part.
type Problem struct {
	Text  string // for everybody
	Cause error  // for the log; nil: the text says it all
	// Restart says that a restart is the remedy: GET /livez fails too.
	Restart bool
	// Remark says that the part is worth a line, and not a failure: the process does its work
	// without it.
	Remark bool
}

// Error implements error.
func (p *Problem) Error() string { return p.Text }

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
	return Problem{Text: strings.ReplaceAll(err.Error(), "\n", "; ")} // errors that were joined have several lines
}

const (
	checkWithin = 2 * time.Second
	keptFor     = 500 * time.Millisecond // a report that is no older answers for the next caller too
	// startsWithin is how long the parts of a process that starts may fail before the log says so.
	startsWithin = 10 * time.Second
)

// Checker runs the checks. It is safe for concurrent use.
type Checker struct {
	log   *slog.Logger
	parts []*part

	mu      sync.Mutex
	running *run // nil: none yet
	last    Report
	started time.Time
}

// run is one run of all checks.
type run struct {
	done   chan struct{}
	ended  time.Time // with Checker.mu, zero while it runs
	report Report
}

// part is a part, and what is known of it.
type part struct {
	Part

	mu       sync.Mutex
	asked    time.Time // of the check that has not returned; zero: none
	answered chan error

	// Only touched by the run that is under way:
	failing time.Time // since when; zero: it works
	told    bool      // the log has said so
}

// New returns a checker of these parts.
func New(log *slog.Logger, parts ...Part) *Checker {
	c := &Checker{log: log, last: Report{Live: true}, started: time.Now()}
	for _, p := range parts {
		p.Within = cmp.Or(p.Within, checkWithin)
		c.parts = append(c.parts, &part{Part: p})
	}
	return c
}

// Report returns how the parts are: by the run under way, or one that ended just now, or else by
// another. It takes no longer than a check may, and ends early with ctx, which ends no run.
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

// Last returns how the parts were found last, at once: nobody restarts a process because something
// else hangs.
func (c *Checker) Last() Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// Watch runs the checks every so often until ctx ends, so that the log tells of what fails though
// nobody asks.
func (c *Checker) Watch(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if _, err := c.Report(ctx); err != nil {
			return // it is to end
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// run asks all parts, and tells of what has changed.
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

// ask returns what is wrong with the part. A check that hangs is left alone: no other one is begun
// before it has returned, and nobody waits for it again.
func (p *part) ask(ctx context.Context) *Problem {
	p.mu.Lock()
	if p.asked.IsZero() {
		p.asked, p.answered = time.Now(), make(chan error, 1)
		go p.check(ctx, p.answered)
	}
	asked, answered := p.asked, p.answered
	p.mu.Unlock()
	deadline := time.NewTimer(time.Until(asked.Add(p.Within)))
	defer deadline.Stop()
	select {
	case err := <-answered:
		switch {
		case err == nil:
			return nil
		case time.Since(asked) >= p.Within && errors.Is(err, context.DeadlineExceeded) && !errors.As(err, new(*Problem)):
			return p.silent(asked)
		}
		problem := problemOf(err)
		return &problem
	case <-deadline.C:
		return p.silent(asked)
	}
}

func (p *part) silent(asked time.Time) *Problem {
	return &Problem{Text: fmt.Sprintf("no answer within %v", max(p.Within, time.Since(asked).Truncate(time.Second)))}
}

func (p *part) check(ctx context.Context, answered chan<- error) {
	ctx, cancel := context.WithTimeout(ctx, p.Within)
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
