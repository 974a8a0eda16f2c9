//go:build unix

package localserver

import (
	"net/url"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLaunchTellsWhyAServerEnded(t *testing.T) {
	t.Parallel()
	nowhere := &url.URL{Scheme: "postgres", Host: "127.0.0.1:1"}
	began := time.Now()
	_, err := launch(nowhere, t.TempDir(), "KILL", nil, []string{"sh", "-c", "echo no luck today; exit 1"})
	if err == nil || !strings.Contains(err.Error(), "no luck today") {
		t.Errorf("got %v", err)
	}
	if time.Since(began) > startTimeout/2 {
		t.Error("waited for a server that had ended")
	}
}

func TestUnprivileged(t *testing.T) {
	t.Parallel()
	as, err := unprivileged()
	if err != nil {
		t.Fatal(err)
	}
	if root := syscall.Geteuid() == 0; root != (as != nil && as.Uid != 0) {
		t.Errorf("root: %v, credential: %+v", root, as)
	}
}
