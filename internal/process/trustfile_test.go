package process_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestTrustFile: a trust file that changes is used, one that is invalid or empty changes nothing,
// and each is logged once.
func TestTrustFile(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "trusted.txt")
	flag, first, second := events.GenerateSigningKey().Public(), events.GenerateSigningKey().Public(), events.GenerateSigningKey().Public()
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(first.String() + "\n")
	flags := process.Trust{Origin: "omiappreg.org", Keys: []string{flag.String()}, File: file}
	now, err := flags.Load()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	log, used, ended := &testenv.Log{}, make(chan events.Trust, 10), make(chan struct{})
	go func() {
		defer close(ended)
		flags.Follow(ctx, slog.New(slog.NewTextHandler(log, nil)), now, func(trust events.Trust) { used <- trust })
	}()
	warned := func(n int) {
		t.Helper()
		testenv.Eventually(t, time.Minute, "a warning", func() error {
			if got := log.Count("level=WARN"); got != n {
				return fmt.Errorf("%d warnings, want %d", got, n)
			}
			return nil
		})
	}
	uses := func(keys int) {
		t.Helper()
		if got := len((<-used).PublicKeys()); got != keys {
			t.Errorf("%d keys are trusted, want %d", got, keys)
		}
	}
	write("ed25519:what is this?\n")
	warned(1)
	write("# none\n")
	warned(2)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	warned(3)
	write(first.String() + "\n" + second.String() + "\n")
	uses(3)
	write(second.String() + "\n")
	uses(2)
	stop()
	<-ended
	if len(used) > 0 || log.Count("\n") != 3 {
		t.Errorf("%d more trusts; the log:\n%s", len(used), log.String())
	}
}
