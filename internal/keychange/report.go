package keychange

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/inspect"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

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
