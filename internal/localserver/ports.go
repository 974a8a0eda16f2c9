package localserver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports that a kernel doesn't lend by itself, neither to who listens on port 0 nor to a connection to elsewhere: Linux begins at 32768
// unless it is told otherwise (ip_local_port_range), macOS and Windows at 49152.
const lowestPort, highestPort = 10_000, 32_767

// portsTried bounds the search: if so many of them are taken, something else is wrong.
const portsTried = 1000

// FreeAddrs returns n loopback addresses on which nobody listens now, each with another port. What is to listen there starts a moment
// later, or is stopped and starts again: a port that the kernel had chosen could be somebody else's by then, one of these only by the
// same lot.
func FreeAddrs(n int) (addrs []string, err error) {
	// All stay taken until the last is found.
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
