package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/registry"
)

// pollEvery is how often retry checks the dead letters.
const pollEvery = 100 * time.Millisecond

type deadLettersCmd struct {
	List  deadLettersListCmd  `cmd:"" help:"List the requests that could not be decided, the oldest first."`
	Show  deadLettersShowCmd  `cmd:"" help:"Show one of them, with the request as it came."`
	Retry deadLettersRetryCmd `cmd:"" help:"Ask a running registry to decide them again."`
}

// Help is shown by --help.
func (*deadLettersCmd) Help() string {
	return `If a request makes the registry panic, or fails again and again while others are committed,
it is set aside as a dead letter. It delays no other request, is not answered, and is not lost. The
registry logs an ERROR with its id, and omi_registry_dead_letters_total counts it. Look at it, fix
the cause (its detail and the log name it), and let a registry decide it again. It is judged as if
it had just been stored for the first time at its original moment, and the service gets its receipt.

  omi-registry deadletters list
  omi-registry deadletters show 5f0c8e2b9a417d36
  omi-registry deadletters retry --all`
}

type deadLettersListCmd struct {
	Database database `embed:""`
	Limit    int      `default:"50" help:"How many to list, from the oldest (${default})."`
	JSON     bool     `help:"Print a JSON array."`
}

// Run lists the dead letters.
func (c *deadLettersListCmd) Run() error {
	if c.Limit < 1 {
		return process.Usagef("--limit: want 1 or more")
	}
	return withExisting(c.Database, func(ctx context.Context, store *registry.Store) error {
		list, err := store.Admin().DeadLetters(ctx, c.Limit+1) // one more shows whether there are more
		if err != nil {
			return err
		}
		more := len(list) > c.Limit
		list = list[:min(len(list), c.Limit)]
		if c.JSON {
			return process.PrintJSON(list)
		}
		var text strings.Builder
		for _, l := range list {
			text.WriteString(string(deadLetterText(l)))
		}
		if more {
			printable.Fprintf(&text, "The oldest %d dead letters. There are more: --limit.\n", len(list))
		} else {
			printable.Fprintf(&text, "%d dead letters.\n", len(list))
		}
		return process.Print("%s", &text)
	})
}

func deadLetterText(l registry.DeadLetter) printable.Composed {
	retrying := ""
	if l.Retrying {
		retrying = ", waiting for a retry"
	}
	return printable.Composed(printable.Sprintf("%s  %s\n    came %s as stream sequence %d, set aside %s after %d tries%s\n    %s: %s\n",
		l.ID, l.Subject, dateTime(l.StoredAt), l.StreamSequence, dateTime(l.SetAsideAt), l.Tries, retrying, l.Reason, l.Detail))
}

func dateTime(seconds int64) string { return time.Unix(seconds, 0).Format(time.DateTime) }

type deadLettersShowCmd struct {
	Database database `embed:""`
	ID       string   `arg:"" help:"Its id, as list shows it."`
	JSON     bool     `help:"Print one JSON object, the request in base64."`
}

// Run shows one dead letter.
func (c *deadLettersShowCmd) Run() error {
	return withExisting(c.Database, func(ctx context.Context, store *registry.Store) error {
		l, err := store.Admin().DeadLetter(ctx, c.ID)
		if err != nil {
			return gone(err)
		}
		if c.JSON {
			return process.PrintJSON(l)
		}
		return process.Print("%s\n%s\n", deadLetterText(l), l.Payload)
	})
}

// gone says what to do about an unknown id.
func gone(err error) error {
	if errors.Is(err, registry.ErrNoDeadLetter) {
		return process.Refused(fmt.Errorf("%w; omi-registry deadletters list shows those that wait", err))
	}
	return err
}

type deadLettersRetryCmd struct {
	Database database      `embed:""`
	IDs      []string      `arg:"" optional:"" name:"id" help:"Their ids, as list shows them."`
	All      bool          `help:"Every dead letter."`
	Wait     time.Duration `default:"10s" help:"How long to wait for the decisions (${default}); 0s: don't wait."`
	JSON     bool          `help:"Print a JSON array with the result of each."`
}

// retried is the result for one dead letter: decided, failed again, or waiting for a registry.
type retried struct {
	ID     string `json:"id"`
	Result string `json:"result"`
	Reason string `json:"reason,omitzero"`
	Detail string `json:"detail,omitzero"`
}

const (
	resultDecided = "decided"
	resultFailed  = "failed"
	resultWaiting = "waiting"
)

// Run asks for dead letters to be decided again.
func (c *deadLettersRetryCmd) Run() error {
	if c.All == (len(c.IDs) > 0) {
		return process.Usagef("give the ids of dead letters, or --all")
	}
	if c.Wait < 0 {
		return process.Usagef("--wait: want 0s or more")
	}
	return withExisting(c.Database, func(ctx context.Context, store *registry.Store) error {
		ids, err := c.ask(ctx, store)
		if err != nil {
			return gone(err)
		}
		results, err := c.follow(ctx, store, ids)
		if err != nil {
			return err
		}
		if c.JSON {
			err = process.PrintJSON(results)
		} else {
			err = process.Print("%s", retriedText(results))
		}
		return cmp.Or(err, c.verdict(results))
	})
}

func (c *deadLettersRetryCmd) ask(ctx context.Context, store *registry.Store) ([]string, error) {
	if c.All {
		return store.Admin().RetryAllDeadLetters(ctx, time.Now())
	}
	return c.IDs, store.Admin().RetryDeadLetters(ctx, c.IDs, time.Now())
}

// follow waits until all are decided or have failed again.
func (c *deadLettersRetryCmd) follow(ctx context.Context, store *registry.Store, ids []string) ([]retried, error) {
	deadline := time.Now().Add(c.Wait)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	results := make([]retried, len(ids))
	for i, id := range ids {
		for results[i] = (retried{ID: id, Result: resultWaiting}); ; {
			l, err := store.Admin().DeadLetter(ctx, id)
			if errors.Is(err, registry.ErrNoDeadLetter) {
				results[i].Result = resultDecided
				break
			}
			if err != nil {
				return nil, err
			}
			if !l.Retrying {
				results[i] = retried{id, resultFailed, l.Reason, l.Detail}
				break
			}
			if !time.Now().Before(deadline) {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil, fmt.Errorf("wait for the registry: %w", ctx.Err())
			}
		}
	}
	return results, nil
}

func retriedText(results []retried) printable.Composed {
	var text strings.Builder
	for _, r := range results {
		switch r.Result {
		case resultFailed:
			printable.Fprintf(&text, "%s  failed again\n    %s: %s\n", r.ID, r.Reason, r.Detail)
		case resultWaiting:
			printable.Fprintf(&text, "%s  a running registry will decide it\n", r.ID)
		default:
			printable.Fprintf(&text, "%s  decided, and answered if possible\n", r.ID)
		}
	}
	printable.Fprintf(&text, "%d dead letters.\n", len(results))
	return printable.Composed(text.String())
}

// verdict returns the error with the exit code.
func (c *deadLettersRetryCmd) verdict(results []retried) error {
	count := map[string]int{}
	for _, r := range results {
		count[r.Result]++
	}
	switch {
	case count[resultFailed] > 0:
		return process.Refused(fmt.Errorf("%d of %d failed again; the registry's log has the rest", count[resultFailed], len(results)))
	case count[resultWaiting] > 0 && c.Wait > 0:
		return process.Unreachable(fmt.Errorf("%d of %d are not decided after %s: is a registry running? They stay queued for it", count[resultWaiting], len(results), c.Wait))
	}
	return nil
}
