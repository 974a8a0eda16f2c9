package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrNotReplaceable means that a new key can't replace the one in a file, because of the file's
// place.
var ErrNotReplaceable = errors.New("the key can't be replaced here")

// errNotPlain is the error for a link or a device in the place of one of our files.
var errNotPlain = errors.New("it is not a regular file with one name: remove it")

const (
	keepElsewhere = "keep the key in a writable volume that outlives the container, and copy it there once"
	mountFolder   = "mount the folder that holds it, writable, and not the file alone (docker -v FOLDER, Kubernetes without subPath)"
)

// Replaceable reports whether this user can replace the key in a file, at the place that [Real]
// returns, and keep its owner. If not, it returns [ErrNotReplaceable], the reason and the remedy.
// It writes nothing.
func Replaceable(path string) error {
	folder := filepath.Dir(path)
	if managed(path) {
		return notReplaceable(path, folder+" belongs to a Kubernetes volume of a Secret or the like, which is replaced whole", keepElsewhere)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return notReplaceable(path, cause(err).Error(), "let this user enter the folder")
	case !info.Mode().IsRegular():
		return notReplaceable(path, "it is not a regular file", "name the file that holds the key")
	case shared(info):
		return notReplaceable(path, "the file has another name (a hard link), which would keep the old key",
			"remove the other name, or make it a symbolic link: ln -sf")
	default:
		if why, do := fixed(path); why != "" {
			return notReplaceable(path, why, do)
		}
	}
	if err := enterable(path, folder); err != nil {
		return err
	}
	return givable(path, folder)
}

// PlaceError says why the key in a file can't be replaced there, and what to do. It is an
// [ErrNotReplaceable].
type PlaceError struct{ Path, Why, Do string }

// Error returns everything in one line.
func (e *PlaceError) Error() string {
	return fmt.Sprintf("%s: %v: %s: %s", e.Path, ErrNotReplaceable, e.Why, e.Do)
}

// Unwrap lets errors.Is recognise it.
func (*PlaceError) Unwrap() error { return ErrNotReplaceable }

func notReplaceable(path, why, do string) error { return &PlaceError{path, why, do} }

// managed reports whether a file is in a folder that the kubelet makes for one version of a volume:
// ..2026_11_30_…, to which ..data leads.
func managed(path string) bool {
	for name := range strings.SplitSeq(filepath.ToSlash(filepath.Dir(path)), "/") {
		if strings.HasPrefix(name, "..") && name != ".." {
			return true
		}
	}
	return false
}

// enterable returns an error unless this user may create and rename files in a folder.
func enterable(path, folder string) error {
	err := mayWrite(folder)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: there is no folder %s", path, folder)
	case errors.Is(err, syscall.EROFS):
		return notReplaceable(path, folder+" is mounted read-only", keepElsewhere)
	case errors.Is(err, syscall.EPERM):
		return notReplaceable(path, folder+" can't be changed (chattr +i or +a)", "chattr -i -a "+folder)
	}
	whose := "a user who may"
	if info, err := os.Stat(folder); err == nil {
		if has, known := ownerOf(info); known && has.uid != os.Geteuid() {
			whose = has.String()
		}
	}
	return notReplaceable(path, userName(os.Geteuid())+" may not write in "+folder, "run this as "+whose+", or let that user write there")
}

// givable returns an error unless a new file can be given to the owner of the old one.
func givable(path, folder string) error {
	to, known, err := ownerFor(path)
	if err != nil || !known {
		return err
	}
	if euid := os.Geteuid(); euid != 0 && to.uid != euid {
		me := userName(euid)
		return notReplaceable(path, fmt.Sprintf("the file belongs to %s, and %s can't give a new one to that user", to, me),
			fmt.Sprintf("run this as %s; or let root change its owner: chown %s %s", to, userArgument(euid), path))
	}
	if tryGive(folder, to) == nil {
		return nil
	}
	if to.uid == os.Geteuid() {
		return notReplaceable(path, fmt.Sprintf("the file's group is %s, to which %s can't give a new one", groupName(to.gid), to),
			fmt.Sprintf("give it another: chgrp %s %s", groupName(os.Getegid()), path))
	}
	return notReplaceable(path, fmt.Sprintf("root can't give files to %s on this file system", to), fmt.Sprintf("run this as %s", to))
}

// maxLinks limits the symbolic links on the way to a file, as the kernel does.
const maxLinks = 40

// Real returns where a file really is, or would be created. It follows symbolic links, even those
// that lead to nothing yet. A path that can't be followed stays as it is: opening it gives the
// error.
func Real(path string) string {
	followed := path
	for range maxLinks {
		resolved, err := filepath.EvalSymlinks(followed)
		if err == nil {
			return resolved
		}
		if _, err := os.Stat(followed); err == nil {
			// it exists, but no name leads to it: a pipe of the shell, such as /dev/fd/63
			return path
		}
		if folder, err := filepath.EvalSymlinks(filepath.Dir(followed)); err == nil {
			followed = filepath.Join(folder, filepath.Base(followed))
		}
		next, err := os.Readlink(followed)
		if err != nil {
			return followed
		}
		if !filepath.IsAbs(next) {
			next = filepath.Join(filepath.Dir(followed), next)
		}
		followed = next
	}
	return path // the links form a circle
}
