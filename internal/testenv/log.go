package testenv

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// Log is where a process under test logs to, and where the test reads it meanwhile. It is safe for
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

// Count is how often the log has a text.
func (l *Log) Count(text string) int { return strings.Count(l.String(), text) }

// Await waits until the log has a text.
func (l *Log) Await(t testing.TB, text string) {
	t.Helper()
	Eventually(t, time.Minute, "the log says "+text, func() error {
		if said := l.String(); !strings.Contains(said, text) {
			return fmt.Errorf("it says %s", said)
		}
		return nil
	})
}
