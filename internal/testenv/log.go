package testenv

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// Log is the log of a process under test, which the test can read at any time. It is safe for
// concurrent use, and its zero value is empty.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String is what was logged so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Count is how often a text occurs in the log.
func (l *Log) Count(text string) int { return strings.Count(l.String(), text) }

// Await waits until a text occurs in the log.
func (l *Log) Await(t testing.TB, text string) {
	t.Helper()
	Eventually(t, time.Minute, "the log says "+text, func() error {
		if said := l.String(); !strings.Contains(said, text) {
			return fmt.Errorf("it says %s", said)
		}
		return nil
	})
}
