//go:build unix

package bench

import "golang.org/x/sys/unix"

// Settle waits until the system has written to the disk what it holds of all files, but for what comes meanwhile. What was made before
// a measurement would be written during it.
func Settle() { unix.Sync() }
