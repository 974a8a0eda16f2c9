package bench_test

import (
	"os"
	"path/filepath"
	"testing"

	"omiappreg.org/keyrotation/internal/bench"
)

// TestSettle: data that can't be written to the disk is an error, even in a folder of the folder. A
// file that is gone, as the broker's may be at any time, is no error.
func TestSettle(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	inner := filepath.Join(folder, "streams")
	if err := os.Mkdir(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(inner, "1.blk"), []byte("messages"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := bench.FlushFolder(folder); err != nil {
		t.Error(err)
	}
	if err := bench.FlushFolder(filepath.Join(folder, "gone")); err != nil {
		t.Error(err)
	}
	if os.Getuid() == 0 {
		return // root may do everything
	}
	if err := os.Chmod(filepath.Join(inner, "1.blk"), 0); err != nil {
		t.Fatal(err)
	}
	if err := bench.FlushFolder(folder); err == nil {
		t.Error("no error")
	}
}
