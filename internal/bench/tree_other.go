//go:build !linux

package bench

import "time"

// TreeCPU returns 0: it can't be counted here.
func TreeCPU(int) time.Duration { return 0 }
