//go:build !linux

package bench

import "time"

func sleep(d time.Duration) error {
	time.Sleep(d)
	return nil
}

// TreeCPU returns 0: it can't be counted here.
func TreeCPU(int) time.Duration { return 0 }
