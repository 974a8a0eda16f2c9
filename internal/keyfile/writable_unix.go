//go:build unix && !linux

package keyfile

import "golang.org/x/sys/unix"

// Writable says whether this user may make files in a folder. It makes none.
func Writable(folder string) error { return unix.Access(folder, unix.W_OK|unix.X_OK) }
