//go:build !linux

package bench

import "time"

func sleep(d time.Duration) error {
	time.Sleep(d)
	return nil
}
