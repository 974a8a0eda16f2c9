package bench

import (
	"errors"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// sleep handles times that are too short for the runtime's clock: an idle Go process sleeps in
// whole milliseconds on Linux.
func sleep(d time.Duration) error {
	rest := unix.NsecToTimespec(d.Nanoseconds())
	for {
		if err := unix.Nanosleep(&rest, &rest); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// ticks is the number of ticks in a second of /proc, on every Linux.
const ticks = 100

// TreeCPU returns the CPU time of a process and all its descendants, including those that ended; 0
// if it can't be counted.
func TreeCPU(pid int) time.Duration {
	all, err := procfs.AllProcs()
	if err != nil {
		return 0
	}
	parents, used := map[int]int{}, map[int]int{}
	for _, p := range all {
		stat, err := p.Stat()
		if err != nil {
			continue // it has ended
		}
		parents[p.PID] = stat.PPID
		// The time of processes that ended counts for their parent.
		used[p.PID] = int(stat.UTime) + int(stat.STime) + stat.CUTime + stat.CSTime
	}
	sum := 0
	for p := range used {
		above := p
		for above != pid && above > 1 {
			above = parents[above]
		}
		if above == pid {
			sum += used[p]
		}
	}
	return time.Duration(sum) * time.Second / ticks
}
