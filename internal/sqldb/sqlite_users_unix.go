//go:build unix

package sqldb

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// usersOf looks who has a file open.
func usersOf(file string) (users, error) {
	f, err := os.Open(file)
	if err != nil {
		return users{}, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	lock := wholeLock()
	if err := unix.FcntlFlock(f.Fd(), getLock, &lock); err != nil {
		return users{}, &os.PathError{Op: "look for locks of", Path: file, Err: err}
	}
	return users{lock.Type != unix.F_UNLCK, lock.Pid}, nil
}

// lockWhole takes SQLite's exclusive lock on a file, until the file is closed. While others have
// it, it says who.
func lockWhole(f *os.File) (users, error) {
	lock := wholeLock()
	err := unix.FcntlFlock(f.Fd(), setLock, &lock)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		lock = wholeLock()
		_ = unix.FcntlFlock(f.Fd(), getLock, &lock) // it only names one
		return users{true, lock.Pid}, nil
	}
	if err != nil {
		return users{}, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return users{}, nil
}

func wholeLock() unix.Flock_t {
	return unix.Flock_t{Type: unix.F_WRLCK, Start: lockFrom, Len: lockBytes}
}

// giveTo gives a file the owner and the group of another. A group that this user may not give stays
// as it is.
func giveTo(f, other *os.File) error {
	var mine, its unix.Stat_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &mine), unix.Fstat(int(other.Fd()), &its)); err != nil {
		return err
	}
	if mine.Uid == its.Uid && mine.Gid == its.Gid {
		return nil
	}
	if err := f.Chown(int(its.Uid), int(its.Gid)); err != nil && mine.Uid != its.Uid {
		return err
	}
	return nil
}
