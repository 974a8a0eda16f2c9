//go:build unix

package keyfile

import (
	"errors"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func ownerOf(info fs.FileInfo) (owner, bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return owner{}, false
	}
	return owner{int(stat.Uid), int(stat.Gid)}, true
}

// shared reports whether a file has another name: a hard link.
func shared(info fs.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink > 1
}

// readOnly reports whether a path can't be written because it is mounted read-only.
func readOnly(path string) bool { return errors.Is(unix.Access(path, unix.W_OK), unix.EROFS) }

// openPlain opens a file that is not a link and has no other name, so that nothing happens to any
// other file.
func openPlain(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, keyMode)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || shared(info)) {
		err = errNotPlain
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
