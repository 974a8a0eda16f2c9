package e2e_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"omiappreg.org/keyrotation/internal/testenv"
)

// binaries is the folder of the programs under test, built once for all tests.
var binaries string

func TestMain(m *testing.M) {
	if os.Getenv(serviceEnv) != "" {
		os.Exit(serviceMain())
	}
	if signal.Ignored(syscall.SIGHUP) { // by nohup, and so by all that is started here
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	folder, err := os.MkdirTemp("", "omi-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a folder for the programs:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(folder) }()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", folder, "omiappreg.org/keyrotation/cmd/...")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
		return 1
	}
	if err := os.Chmod(folder, 0o755); err != nil { // the programs run as other users, too
		fmt.Fprintln(os.Stderr, "open the folder of the programs:", err)
		return 1
	}
	binaries = folder
	return testenv.Main(m)
}

// useSources tells go test what the programs are built from, which it can't see: it notes each
// folder that a test lists, and does not answer from its cache once a file there has changed.
func useSources(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join("..", ".."), func(_ string, entry fs.DirEntry, err error) error {
		// In a worktree .git is a file, and SkipDir would skip all the rest.
		if err == nil && entry.IsDir() && entry.Name() == ".git" {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
