//go:build unix && !linux

package keyfile

import "golang.org/x/sys/unix"

// Writable says whether this user may make files in a folder. It makes none.
func Writable(folder string) error { return mayWrite(folder) }

func mayWrite(folder string) error { return unix.Access(folder, unix.W_OK|unix.X_OK) }

// tryGive can't try without a trace.
func tryGive(string, owner) error { return nil }
