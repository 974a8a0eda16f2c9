package bench

import (
	"time"

	"github.com/prometheus/procfs"
)

// ticks is how many parts of a second /proc counts in, on every Linux.
const ticks = 100

// TreeCPU returns what a process and all below it have used of the CPU, those that ended too; 0 where nobody counts.
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
		// What ended counts as its parent's.
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
