//go:build !linux

package sqldb

import (
	"syscall"
	"time"
)

// giveUp does nothing here: the system tries for as long as it does.
func giveUp(time.Duration) func(network, address string, raw syscall.RawConn) error { return nil }
