package e2e_test

import "golang.org/x/sys/unix"

// noFullDisk says why a disk can't be full for one process here; empty: it can.
const noFullDisk = ""

// fillDisk lets no file of the process grow beyond size: a write there fails. Go's runtime takes
// SIGXFSZ without a word.
func (d *daemon) fillDisk(size uint64) (empty func() error, err error) {
	pid := d.cmd.Process.Pid
	var before unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &before); err != nil {
		return nil, err
	}
	full := unix.Rlimit{Cur: size, Max: before.Max}
	if err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &full, nil); err != nil {
		return nil, err
	}
	return func() error { return unix.Prlimit(pid, unix.RLIMIT_FSIZE, &before, nil) }, nil
}
