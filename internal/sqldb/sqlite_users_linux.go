package sqldb

import "golang.org/x/sys/unix"

// These locks are of an open file and not of the process: they are in the way of SQLite's own in
// this process, too, and closing another descriptor of the file doesn't end them.
const (
	getLock = unix.F_OFD_GETLK
	setLock = unix.F_OFD_SETLK
)
