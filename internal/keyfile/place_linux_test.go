package keyfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
)

// Users and a group that don't exist.
const (
	service, stranger, group = 23901, 23902, 23903
)

// passable returns a folder that other users may enter.
func passable(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	for _, path := range []string{filepath.Dir(folder), folder} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

func newKey(t *testing.T, path string) events.SigningKey {
	t.Helper()
	key := events.GenerateSigningKey()
	if err := keyfile.Create(path, key); err != nil {
		t.Fatal(err)
	}
	return key
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// wantRefusal expects an error that contains each of these texts.
func wantRefusal(t *testing.T, err, want error, says ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
		return
	}
	for _, text := range says {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%v: does not say %q", err, text)
		}
	}
}

// wantFile expects a file of this owner, group and mode.
func wantFile(t *testing.T, path string, uid, gid uint32, mode fs.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Error(err)
		return
	}
	if has := info.Sys().(*syscall.Stat_t); has.Uid != uid || has.Gid != gid || info.Mode().Perm() != mode {
		t.Errorf("%s is of %d:%d, mode %04o, want %d:%d, mode %04o", path, has.Uid, has.Gid, info.Mode().Perm(), uid, gid, mode)
	}
}

// TestMounts: a key that can't be replaced is reported before anything depends on it.
func TestMounts(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	folder := t.TempDir()
	in := func(name string) string { return filepath.Join(folder, name) }
	for _, name := range []string{"host", "with a blank", "read", "whole"} {
		must(t, os.Mkdir(in(name), 0o700))
		newKey(t, in(name+"/key.pem"))
	}
	bindMount(t, in("host/key.pem"), in("with a blank/key.pem"), false)
	wantRefusal(t, keyfile.Replaceable(in("with a blank/key.pem")), keyfile.ErrNotReplaceable, "a mount of its own", "mount the folder")
	must(t, keyfile.Replaceable(in("host/key.pem")))
	if _, err := keyfile.Read(in("with a blank/key.pem")); err != nil {
		t.Errorf("it can be read: %v", err)
	}
	bindMount(t, in("read"), in("read"), true)
	wantRefusal(t, keyfile.Replaceable(in("read/key.pem")), keyfile.ErrNotReplaceable, "mounted read-only", "a writable volume")
	wantRefusal(t, keyfile.Replaceable(in("read/new.pem")), keyfile.ErrNotReplaceable, "mounted read-only")
	bindMount(t, in("host"), in("whole"), false)
	must(t, keyfile.Replaceable(in("whole/key.pem")))
	// It does not advise what can't be done.
	must(t, os.Chmod(in("host/key.pem"), 0o644))
	bindMount(t, in("host"), in("whole"), true)
	_, err := keyfile.Read(in("whole/key.pem"))
	wantRefusal(t, err, keyfile.ErrOpen, "defaultMode")
	if strings.Contains(err.Error(), "chmod") {
		t.Errorf("advises what can't be done: %v", err)
	}
}

// TestSecretVolume: Kubernetes replaces such a folder as a whole, with the key in it.
func TestSecretVolume(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	version := filepath.Join(folder, "..2026_11_30_20_37_36.1")
	must(t, os.Mkdir(version, 0o700), os.Symlink(filepath.Base(version), filepath.Join(folder, "..data")),
		os.Symlink("..data/key.pem", filepath.Join(folder, "key.pem")))
	newKey(t, filepath.Join(version, "key.pem"))
	path := keyfile.Real(filepath.Join(folder, "key.pem"))
	wantRefusal(t, keyfile.Replaceable(path), keyfile.ErrNotReplaceable, "replaced whole", "copy it there once")
	must(t, keyfile.Replaceable(filepath.Join(folder, "..", filepath.Base(folder), "key.pem.copy")))
}

// TestHardLink: the other name would keep the old key.
func TestHardLink(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key.pem")
	newKey(t, path)
	must(t, keyfile.Replaceable(path), os.Link(path, path+".other"))
	wantRefusal(t, keyfile.Replaceable(path), keyfile.ErrNotReplaceable, "another name", "ln -sf")
	must(t, os.Remove(path+".other"), keyfile.Replaceable(path), os.Mkdir(path+".folder", 0o700))
	wantRefusal(t, keyfile.Replaceable(path+".folder"), keyfile.ErrNotReplaceable, "not a regular file")
}

// TestRootWritesForTheOwner: files that root writes belong to the user for whom it works.
func TestRootWritesForTheOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // only root can give files away
	}
	folder := passable(t)
	store := filepath.Join(folder, "store")
	must(t, os.Mkdir(store, 0o700), os.Chown(store, service, group))
	path := filepath.Join(store, "key.pem")
	newKey(t, path)
	wantFile(t, path, service, group, 0o600)
	must(t, os.Chown(path, stranger, group), keyfile.Replaceable(path),
		keyfile.Touch(path+".lock", path), keyfile.WriteFile(path+".journal", path, nil),
		keyfile.Replace(path+".pending", path, events.GenerateSigningKey()))
	for _, suffix := range []string{".lock", ".journal", ".pending"} {
		wantFile(t, path+suffix, stranger, group, 0o600)
	}
	must(t, os.Chown(path+".pending", 0, 0), keyfile.Rename(path+".pending", path))
	wantFile(t, path, stranger, group, 0o600)
	must(t, keyfile.MakeFolder(filepath.Join(store, "a", "b")))
	wantFile(t, filepath.Join(store, "a", "b"), service, group, 0o700)

	shared := filepath.Join(folder, "shared")
	must(t, os.Mkdir(shared, 0o700), os.Chown(shared, service, group), os.Chmod(shared, 0o777|os.ModeSticky))
	newKey(t, filepath.Join(shared, "key.pem"))
	wantFile(t, filepath.Join(shared, "key.pem"), 0, 0, 0o600)
	// A link that the owner has put there does not make root give any other file away.
	must(t, os.WriteFile(filepath.Join(folder, "roots"), nil, 0o600), os.Symlink("../roots", filepath.Join(store, "link")))
	if err := keyfile.Touch(filepath.Join(store, "link"), path); err == nil {
		t.Error("touched what a link leads to")
	}
	wantFile(t, filepath.Join(folder, "roots"), 0, 0, 0o600)
}

// TestAnothersKey: a user who can't give the new key to the owner of the old one does not replace
// it, and is told who can.
func TestAnothersKey(t *testing.T) {
	t.Parallel()
	folder := passable(t)
	path := filepath.Join(folder, "key.pem")
	newKey(t, path)
	if os.Geteuid() != 0 {
		return // the rest takes two users
	}
	must(t, os.Chown(folder, service, service), os.Chown(path, service, service))
	asUser(t, stranger, stranger, func() {
		wantRefusal(t, keyfile.Replaceable(path), keyfile.ErrNotReplaceable, "may not write in "+folder, "run this as user 23901")
		if _, err := keyfile.Read(path); err == nil || !strings.Contains(err.Error(), "user 23902 may not read it: run this as user 23901") {
			t.Errorf("read another's key: %v", err)
		}
	})
	asUser(t, service, service, func() {
		must(t, keyfile.Replaceable(path), keyfile.Replace(path, path, events.GenerateSigningKey()))
	})
	must(t, os.Chown(path, 0, 0))
	asUser(t, service, service, func() {
		wantRefusal(t, keyfile.Replaceable(path), keyfile.ErrNotReplaceable, "the file belongs to root", "chown 23901")
	})
	must(t, os.Chown(path, service, group))
	asUser(t, service, service, func() {
		wantRefusal(t, keyfile.Replaceable(path), keyfile.ErrNotReplaceable, "the file's group is 23903", "chgrp 23901 "+path)
	})
	must(t, os.Chown(path, service, group), os.Chown(folder, service, group), os.Chmod(folder, 0o770|os.ModeSetgid))
	asUser(t, service, service, func() {
		must(t, keyfile.Replaceable(path), keyfile.Replace(path, path, events.GenerateSigningKey()))
	})
	wantFile(t, path, service, group, 0o600)
	must(t, os.Chmod(folder, 0o755), os.Chown(folder, 0, 0))
	asUser(t, service, service, func() {
		wantRefusal(t, keyfile.Replaceable(path), keyfile.ErrNotReplaceable, "may not write in", "run this as root")
	})
}

// TestModes: who may read a private key in a mount, and what to do about others.
func TestModes(t *testing.T) {
	t.Parallel()
	folder := passable(t)
	path := filepath.Join(folder, "key.pem")
	newKey(t, path)
	// Ours, with the folder's group: the result of fsGroup.
	must(t, os.Chmod(path, 0o660))
	if _, err := keyfile.Read(path); err != nil {
		t.Errorf("as fsGroup has it: %v", err)
	}
	if said := keyfile.Tighten(path, path+".none", ""); !strings.Contains(said, path+": the group could read it (mode 0660)") {
		t.Errorf("said %q", said)
	}
	if said := keyfile.Tighten(path); said != "" {
		t.Errorf("said %q of what was right", said)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	for _, mode := range []fs.FileMode{0o604, 0o602, 0o601, 0o644, 0o666} {
		must(t, os.Chmod(path, mode))
		_, err := keyfile.Read(path)
		wantRefusal(t, err, keyfile.ErrOpen, "chmod 600 "+path)
		if said := keyfile.Tighten(path); said != "" {
			t.Errorf("%04o: others read it, so it is theirs as well: %s", mode, said)
		}
	}
	if os.Geteuid() != 0 {
		return // the rest takes two users
	}
	// A Secret: it belongs to root, and its group may read it.
	must(t, os.Chown(path, 0, group), os.Chmod(path, 0o440))
	asUser(t, service, group, func() {
		if _, err := keyfile.Read(path); err != nil {
			t.Errorf("as a Secret is mounted: %v", err)
		}
		if said := keyfile.Tighten(path); said != "" {
			t.Errorf("said %q of what is another's", said)
		}
	})
	_, err := keyfile.Read(path)
	wantRefusal(t, err, keyfile.ErrOpen, "chmod 600 "+path) // root may
	must(t, os.Chmod(path, 0o444))
	asUser(t, service, group, func() {
		_, err := keyfile.Read(path)
		wantRefusal(t, err, keyfile.ErrOpen, "it belongs to root", "chown 23901 "+path)
	})
	must(t, os.Chown(path, stranger, group), os.Chmod(path, 0o640))
	asUser(t, service, group, func() {
		_, err := keyfile.Read(path)
		wantRefusal(t, err, keyfile.ErrOpen, "it belongs to user 23902")
	})
}

// TestAnotherOwner: a private key must belong to us or to root, even if we can read another user's.
// Root works for any user, and is told which keys are not its own.
func TestAnotherOwner(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		return // it takes two users
	}
	path := filepath.Join(passable(t), "key.pem")
	newKey(t, path)
	must(t, os.Chown(path, stranger, stranger))
	info, err := os.Stat(path)
	must(t, err, keyfile.CheckMode(path, info))
	asUser(t, service, service, func() { // a capability, or a file system, may let it read the file
		wantRefusal(t, keyfile.CheckMode(path, info), keyfile.ErrOwner, "it belongs to user 23902", "run it as user 23902", "chown 23901 "+path)
		if said := keyfile.Foreign(path); said != "" {
			t.Errorf("said %q to who is not root", said)
		}
	})
	asUser(t, stranger, stranger, func() { must(t, keyfile.CheckMode(path, info)) })
	if said := keyfile.Foreign("", path+".none", path); !strings.Contains(said, "belongs to user 23902") || !strings.Contains(said, "chown root "+path) {
		t.Errorf("root uses another's key, and is told %q", said)
	}
	must(t, os.Chown(path, 0, 0))
	if said := keyfile.Foreign(path); said != "" {
		t.Errorf("said %q of root's own", said)
	}
}

// TestOpenFolders: if all users may write in a folder, they can remove a key; if the sticky bit is
// set, they can't.
func TestOpenFolders(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path, link := filepath.Join(folder, "key.pem"), filepath.Join(t.TempDir(), "link.pem")
	must(t, os.Symlink(path, link))
	for mode, open := range map[fs.FileMode]bool{
		0o700: false, 0o755: false, 0o770: false, 0o777: true, 0o773: true, 0o777 | os.ModeSticky: false, 0o777 | os.ModeSetgid: true,
	} {
		must(t, os.Chmod(folder, mode))
		said := keyfile.OpenFolders("", path, link, path+".pending")
		if (said != "") != open || open && (!strings.Contains(said, "chmod o-w "+folder) || strings.Count(said, "all users") != 1) {
			t.Errorf("mode %v: %q", mode, said)
		}
	}
}
