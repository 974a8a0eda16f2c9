package client_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"omiappreg.org/keyrotation/client"
)

// TestFolderBehindALink: the key changes where it really is, whoever opens it by which name.
func TestFolderBehindALink(t *testing.T) {
	t.Parallel()
	folder, ctx := t.TempDir(), t.Context()
	store, links := filepath.Join(folder, "store"), filepath.Join(folder, "links")
	if err := os.Mkdir(links, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(links, "current.pem")
	if err := os.Symlink("../store/key.pem", link); err != nil {
		t.Fatal(err)
	}
	release, err := open(t, store).TryLock(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f, err := client.OpenFile(link)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.TryLock(ctx); !errors.Is(err, client.ErrLocked) {
		t.Errorf("the store is locked, and by its other name: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.Generate(ctx, client.Current); err != nil {
		t.Fatal(err)
	}
	key, err := f.Generate(ctx, client.Pending)
	next := public(t, key, err)
	if err := f.Save(ctx, []byte("a journal")); err != nil {
		t.Fatal(err)
	}
	// The link may come to lead elsewhere: what was begun ends where it was begun.
	if err := errors.Join(os.Remove(link), os.Symlink("../elsewhere/key.pem", link)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Promote(ctx), f.Save(ctx, nil), f.Close()); err != nil {
		t.Fatal(err)
	}
	key, err = open(t, store).Signer(ctx, client.Current)
	if got := public(t, key, err); got != next {
		t.Errorf("the store holds %s, want the promoted %s", got, next)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is %v, %v", info, err)
	}
	if left, err := os.ReadDir(links); err != nil || len(left) != 1 {
		t.Errorf("beside the link: %v, %v", left, err)
	}
}
