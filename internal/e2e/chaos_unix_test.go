//go:build unix

package e2e_test

import "syscall"

// noPause says why a process can't be paused here; empty: it can.
const noPause = ""

// pause takes the processor from it, as a machine does that is short of memory, or moved to another
// host.
func (d *daemon) pause() error { return d.cmd.Process.Signal(syscall.SIGSTOP) }

func (d *daemon) resume() error { return d.cmd.Process.Signal(syscall.SIGCONT) }
