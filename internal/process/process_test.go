package process_test

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/internal/process"
)

// TestStopSignals: a terminal that is gone ends a process, unless nohup started it.
func TestStopSignals(t *testing.T) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // as under nohup
	if !slices.Contains(process.StopSignals(), os.Signal(syscall.SIGHUP)) {
		t.Error("SIGHUP would end it as a crash does")
	}
	signal.Ignore(syscall.SIGHUP)
	t.Cleanup(func() { signal.Reset(syscall.SIGHUP) })
	if slices.Contains(process.StopSignals(), os.Signal(syscall.SIGHUP)) {
		t.Error("it ends though SIGHUP is ignored")
	}
}

// TestLogIsPrintable: whatever is logged, and in whichever form, no terminal obeys it; and a
// program can read the original text.
func TestLogIsPrintable(t *testing.T) {
	t.Parallel()
	const hostile = "x\x1b[2J\x7f\u009b2J\n\u202e\u3164\U000e0041"
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	log := process.NewLog(file, slog.LevelInfo).With("given", hostile).WithGroup(hostile)
	log.Info(hostile, "text", hostile, "error", errors.New(hostile), "list", []string{hostile})
	content, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range string(content) {
		if r != '\n' && (r > '~' || r < ' ') {
			t.Errorf("the log holds %U: %q", r, content)
		}
	}
	var line map[string]any
	if err := json.Unmarshal(content, &line); err != nil || strings.Count(string(content), "\n") != 1 {
		t.Fatalf("%q: %v", content, err)
	}
	group, _ := line[hostile].(map[string]any)
	list, _ := group["list"].([]any)
	if line["msg"] != hostile || line["given"] != hostile || group["text"] != hostile || group["error"] != hostile || len(list) != 1 || list[0] != hostile {
		t.Errorf("what was logged is read as %q", line)
	}
}
