package process_test

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
	"testing"

	"omiappreg.org/keyrotation/internal/process"
)

// TestStopSignals: a terminal that is gone ends a process, unless nohup started it.
func TestStopSignals(t *testing.T) {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP) // the tests themselves may run under nohup
	if !slices.Contains(process.StopSignals(), os.Signal(syscall.SIGHUP)) {
		t.Error("SIGHUP would end it as a crash does")
	}
	signal.Ignore(syscall.SIGHUP)
	t.Cleanup(func() { signal.Reset(syscall.SIGHUP) })
	if slices.Contains(process.StopSignals(), os.Signal(syscall.SIGHUP)) {
		t.Error("it ends though SIGHUP is ignored")
	}
}
