//go:build unix

package localserver

import (
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test binary runs itself as a process that starts a server and is then killed.
const childEnv = "OMI_TEST_GUARD_CHILD"

func TestServerDiesWithKilledProcess(t *testing.T) {
	t.Parallel()
	if os.Getenv(childEnv) != "" {
		startAndHang(t)
	}
	if _, err := postgresPrograms(); err != nil {
		missing(t, err)
	}
	note := filepath.Join(t.TempDir(), "note")
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), childEnv+"="+note)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var data string
	eventually(t, "the child's server", func() error {
		text, err := os.ReadFile(note)
		data = string(text)
		return err
	})
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	eventually(t, "the end of the server", func() error {
		if _, err := os.Stat(data); !os.IsNotExist(err) {
			return os.ErrExist
		}
		return nil
	})
	if out, _ := exec.Command("pgrep", "-f", data).Output(); len(out) > 0 {
		t.Errorf("processes of the server are left: %s", out)
	}
}

func startAndHang(t *testing.T) {
	t.Helper()
	server, err := StartPostgres(PostgresConfig{})
	if err != nil {
		t.Fatal(err)
	}
	temporary := os.Getenv(childEnv) + ".new"
	if err := os.WriteFile(temporary, []byte(server.guard.Dir), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, os.Getenv(childEnv)); err != nil {
		t.Fatal(err)
	}
	select {} // until killed
}

// missing ends a test without PostgreSQL, as internal/testenv would, which this package can't import here.
func missing(t *testing.T, err error) {
	t.Helper()
	if strings.Contains(os.Getenv("OMI_TEST_REQUIRE"), "postgres") {
		t.Fatal(err)
	}
	t.Skip(err)
}

func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for err := condition(); err != nil; err = condition() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

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
		missing(t, err)
	}
	if root := syscall.Geteuid() == 0; root != (as != nil && as.Uid != 0) {
		t.Errorf("root: %v, credential: %+v", root, as)
	}
}
