package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/mattn/go-isatty"
	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
)

const (
	// watchEach is how often the command asks about a watched service, because propagation and the
	// end of a grace period make no event.
	watchEach = time.Second
	// watchPatience is the time after which a registry that does not answer counts as unavailable.
	watchPatience = 2 * time.Second
)

// Status is what `omi status` asks for: its grammar.
type Status struct {
	session.Connection  `embed:""`
	session.TargetFlags `embed:""`
	Watch               bool `help:"Keep showing it until Ctrl-C."`
}

// Help is shown by --help.
func (*Status) Help() string {
	return `The registry signs its answer about a service, and only that signature is believed.

  omi status --app-id org.example.dev --service-id cms
  # one object for each change
  omi status --app-id org.example.dev --service-id cms --watch --json

"has applied the last change" is what the broker and the core services say. When all of them have, a
new key is safe to use. --watch updates the text on a terminal; elsewhere it prints each change.`
}

// Run shows a service's record.
func (c *Status) Run() error {
	t, err := c.Target()
	if err != nil {
		return err
	}
	if c.Watch {
		return c.With(0, func(ctx context.Context, s *session.Session) error {
			return c.watch(ctx, s, t)
		})
	}
	return c.With(c.Timeout, func(ctx context.Context, s *session.Session) error {
		record, err := s.Record(ctx, t)
		if err != nil {
			return err
		}
		if c.JSON {
			return process.PrintJSON(record)
		}
		return process.Print("%s", recordText(record))
	})
}

// watch shows the record until ctx ends. The broker or the registry may go away and come back
// meanwhile.
func (c *Status) watch(ctx context.Context, s *session.Session, t events.Target) error {
	view := &recordView{w: os.Stdout, terminal: drawable(), json: c.JSON}
	// An event is a reason to ask at once, even a forged one: the command shows only the registry's
	// signed answer.
	news := make(chan struct{}, 1)
	subscription, err := s.Conn.Subscribe(events.InvalidationSubject+t.String(), func(*nats.Msg) {
		select {
		case news <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return process.Unreachable(fmt.Errorf("follow the events of %s: %w", t, err))
	}
	defer func() { _ = subscription.Unsubscribe() }() // the connection ends with it
	tick := time.NewTicker(watchEach)
	defer tick.Stop()
	for {
		asking, cancel := context.WithTimeout(ctx, min(c.Timeout, watchPatience))
		record, err := s.Record(asking, t)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			err = view.show(record)
		case view.shown != nil && !s.Conn.IsClosed() && passing(err):
			view.miss(err)
			err = nil
		}
		if err != nil {
			return err
		}
		select {
		case <-news:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// passing reports whether a missing answer may come later. A refusal, or an answer that the
// registry did not sign, stays so.
func passing(err error) bool {
	if refused := (*api.Problem)(nil); errors.As(err, &refused) {
		return refused.Status == http.StatusServiceUnavailable
	}
	return !errors.Is(err, registryclient.ErrUnknownService) && !errors.As(err, new(*events.Refusal))
}

// recordView shows a watched record.
type recordView struct {
	w        io.Writer
	terminal bool // update the text in place; otherwise print each change
	json     bool

	shown       []byte // the last record that was shown, without its time
	unavailable bool
}

// show shows a record.
func (v *recordView) show(r events.ServiceRecord) error {
	content := r
	content.Timestamp = 0 // it changes without any other change
	state, err := json.Marshal(content, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("compare the registry's answers: %w", err)
	}
	first, changed := v.shown == nil, !bytes.Equal(state, v.shown)
	v.shown = state
	if v.unavailable {
		v.unavailable = false
		tell("the registry answers again")
	}
	switch {
	case v.json && changed:
		return process.PrintJSON(r)
	case v.json:
	case v.terminal:
		return v.draw(r)
	case changed:
		between := "\n"
		if first {
			between = ""
		}
		return v.print("%s%s  %s", between, time.Unix(r.Timestamp, 0).Format(time.TimeOnly), recordText(r))
	}
	return nil
}

// draw replaces the text on the screen. Lines may be wider than the screen, so it is not known
// where the last record began: the cursor goes to the corner.
func (v *recordView) draw(r events.ServiceRecord) error {
	const home, eraseBelow = "\x1b[H", "\x1b[J"
	return v.print("%s%s\nAs of %s. Ctrl-C ends this.\n", home+eraseBelow, recordText(r), time.Unix(r.Timestamp, 0).Format(time.TimeOnly))
}

// print writes everything at once, so that it does not flicker.
func (v *recordView) print(format string, args ...any) error {
	if _, err := fmt.Fprintf(v.w, format, args...); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// miss says once that no answer came. The shown record stays.
func (v *recordView) miss(err error) {
	if !v.unavailable {
		v.unavailable = true
		tell(fmt.Sprintf("waiting for an answer: %v", process.Plain(err)))
	}
}

// tell is for the person who watches: the standard output has only records.
func tell(what string) {
	printable.Fprintf(os.Stderr, "omi: %s  %s\n", time.Now().Format(time.TimeOnly), what)
}

// drawable reports whether the standard output is a terminal that can be drawn on.
func drawable() bool { return isatty.IsTerminal(os.Stdout.Fd()) && os.Getenv("TERM") != "dumb" }
