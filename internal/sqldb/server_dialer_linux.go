package sqldb

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// giveUp has the system end a connection whose data the other side has not acknowledged for so
// long. Keep-alives are not sent while data is on its way, and the system would try it again for a
// quarter of an hour: so long a COMMIT, which has no other limit, would wait for a server that is
// cut off.
func giveUp(after time.Duration) func(network, address string, raw syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) {
			// Not a TCP connection, or an odd system: it is as it was.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(after.Milliseconds()))
		})
	}
}
