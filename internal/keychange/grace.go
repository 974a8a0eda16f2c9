package keychange

import (
	"context"
	"os"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

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
