package keyfile_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
)

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key.pem")
	key := events.GenerateSigningKey()
	if err := keyfile.Create(path, key); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	got, err := keyfile.Read(path)
	if err != nil || got.Public() != key.Public() {
		t.Errorf("read %v, %v", got, err)
	}
	if err := keyfile.Create(path, key); !errors.Is(err, keyfile.ErrExists) {
		t.Errorf("a key was overwritten: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".new-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const secret = "SECRETSECRETSECRETSECRET"
	for _, c := range []struct {
		path string
		want error
	}{
		{filepath.Join(folder, "none.pem"), keyfile.ErrMissing},
		{write("open.pem", secret, 0o644), keyfile.ErrOpen},
		{write("text.pem", secret, 0o600), keyfile.ErrFormat},
		{write("der.pem", "-----BEGIN PRIVATE KEY-----\n"+secret+"\n-----END PRIVATE KEY-----\n", 0o600), keyfile.ErrFormat},
	} {
		_, err := keyfile.Read(c.path)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.path, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("the error quotes the file: %v", err)
		}
	}
}

// TestMoreThanAKey: a file with more than a key is refused, so a rotation can't delete the rest of
// it.
func TestMoreThanAKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := keyfile.Create(path, events.GenerateSigningKey()); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for more, says := range map[string]string{
		"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n": "would delete: move what is not the key to a file of its own",
		"a comment\n": "would delete",
	} {
		if err := os.WriteFile(path, append(content, more...), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := keyfile.Read(path)
		if !errors.Is(err, keyfile.ErrFormat) || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), string(content[30:60])) {
			t.Errorf("a key, and %q: %v", more, err)
		}
	}
}

func TestMakeFolder(t *testing.T) {
	t.Parallel()
	above := filepath.Join(t.TempDir(), "a")
	path := filepath.Join(above, "b", "keys")
	for range 2 {
		if err := keyfile.MakeFolder(path + "/"); err != nil {
			t.Fatal(err)
		}
	}
	for _, folder := range []string{above, path} {
		if info, err := os.Stat(folder); err != nil || !info.IsDir() || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", folder, info, err)
		}
	}
	file := filepath.Join(path, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, taken := range []string{file, filepath.Join(file, "keys")} {
		if err := keyfile.MakeFolder(taken); err == nil {
			t.Errorf("%s is a folder beside a file", taken)
		}
	}
}

func TestReadPublicKeys(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "trust")
	a, b := events.GenerateSigningKey().Public(), events.GenerateSigningKey().Public()
	content := "# the registry\n" + a.String() + "\n\n" + b.String() + " # the next one\n"
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	keys, err := keyfile.ReadPublicKeys(path)
	if err != nil || len(keys) != 2 || keys[0] != a || keys[1] != b {
		t.Errorf("%v, %v", keys, err)
	}
}

// TestWritable: Writable answers without leaving a trace.
func TestWritable(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	if err := keyfile.Writable(folder); err != nil {
		t.Errorf("an own folder: %v", err)
	}
	if runtime.GOOS == "windows" || os.Geteuid() == 0 {
		return // elsewhere only writing shows it; and root may do anything
	}
	if err := os.Chmod(folder, 0o500); err != nil {
		t.Fatal(err)
	}
	if err := keyfile.Writable(folder); err == nil {
		t.Error("a folder that is read-only")
	}
}
