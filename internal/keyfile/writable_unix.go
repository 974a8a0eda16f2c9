//go:build unix && !linux

package keyfile

import "golang.org/x/sys/unix"

// Writable returns an error unless this user may create files in a folder. It creates none.
func Writable(folder string) error { return mayWrite(folder) }

func mayWrite(folder string) error { return unix.Access(folder, unix.W_OK|unix.X_OK) }

// tryGive always returns nil: trying would leave a trace here.
func tryGive(string, owner) error { return nil }
