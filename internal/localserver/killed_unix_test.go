//go:build unix

package localserver_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/localserver"
	"omiappreg.org/keyrotation/internal/testenv"
)

// The test binary runs itself as a process that starts a server and is then killed.
const childEnv = "OMI_TEST_GUARD_CHILD"

func TestServerDiesWithKilledProcess(t *testing.T) {
	t.Parallel()
	if os.Getenv(childEnv) != "" {
		startAndHang(t)
	}
	if _, err := localserver.PostgresPrograms(); err != nil {
		testenv.Missing(t, testenv.Postgres, err)
	}
	note := filepath.Join(t.TempDir(), "note")
	child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), childEnv+"="+note)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var data string
	testenv.Eventually(t, time.Minute, "the child's server", func() error {
		text, err := os.ReadFile(note)
		data = string(text)
		return err
	})
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	testenv.Eventually(t, time.Minute, "the end of the server", func() error {
		if _, err := os.Stat(data); !os.IsNotExist(err) {
			return os.ErrExist
		}
		return nil
	})
	testenv.Eventually(t, time.Minute, "the end of all its processes", func() error { // the guard removes the folder, and then ends itself
		if out, _ := exec.Command("pgrep", "-f", data).Output(); len(out) > 0 {
			return fmt.Errorf("there are %s", out)
		}
		return nil
	})
}

func startAndHang(t *testing.T) {
	t.Helper()
	server, err := localserver.NewPostgres(localserver.PostgresConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	temporary := os.Getenv(childEnv) + ".new"
	if err := os.WriteFile(temporary, []byte(server.Folder()), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(temporary, os.Getenv(childEnv)); err != nil {
		t.Fatal(err)
	}
	select {} // until killed
}
