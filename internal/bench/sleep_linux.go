package bench

import (
	"errors"
	"time"

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
