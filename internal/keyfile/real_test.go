package keyfile_test

import (
	"os"
	"path/filepath"
	"testing"

	"omiappreg.org/keyrotation/internal/keyfile"
)

// TestReal: a file is where its links lead, even if nothing is there yet.
func TestReal(t *testing.T) {
	t.Parallel()
	folder, err := filepath.EvalSymlinks(t.TempDir()) // on some systems it is behind a link itself
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(folder, name) }
	for _, path := range []string{in("store"), in("empty")} {
		if err := os.Mkdir(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(in("store/key.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{
		"current.pem": "store/key.pem", "second.pem": in("current.pem"), "folder": "store",
		"future.pem": "empty/key.pem", "far.pem": "folder/future.pem", "nowhere.pem": "none/key.pem", "circle.pem": "circle.pem",
	} {
		if err := os.Symlink(to, in(link)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"store/key.pem": "store/key.pem", "current.pem": "store/key.pem", "second.pem": "store/key.pem", "folder/key.pem": "store/key.pem",
		"future.pem": "empty/key.pem", "far.pem": "store/future.pem", "folder/new.pem": "store/new.pem", "none/key.pem": "none/key.pem",
		"nowhere.pem": "none/key.pem", "circle.pem": "circle.pem",
	} {
		if got := keyfile.Real(in(path)); got != in(want) {
			t.Errorf("%s is really %s, want %s", path, got, in(want))
		}
	}
}
