//go:build unix && !linux

package sqldb

import "golang.org/x/sys/unix"

const (
	getLock = unix.F_GETLK
	setLock = unix.F_SETLK
)
