package localserver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// A kernel doesn't assign these ports itself, neither to a listener on port 0 nor to an outgoing
// connection: by default Linux begins at 32768 (ip_local_port_range), and macOS and Windows at
// 49152.
const lowestPort, highestPort = 10_000, 32_767

// portsTried bounds the search: if so many ports are taken, something else is wrong.
const portsTried = 1000

// FreeAddrs returns n loopback addresses on which no process listens now, each with another port.
// The caller's process listens there a moment later, or is stopped and starts again. A port that
// the kernel had chosen could belong to another process by then. One of these could only by the
// same random choice.
func FreeAddrs(n int) (addrs []string, err error) {
	// All ports stay taken until the last one is found.
	var held []net.Listener
	defer func() {
		for _, l := range held {
			err = errors.Join(err, l.Close())
		}
	}()
	for tried := 0; len(held) < n; tried++ {
		port := lowestPort + rand.IntN(highestPort-lowestPort+1) //nolint:gosec // no secret
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		switch {
		case err == nil:
			held, addrs = append(held, l), append(addrs, l.Addr().String())
		case tried >= portsTried:
			return nil, fmt.Errorf("find a free port: %w", err)
		}
	}
	return addrs, nil
}
