package testenv

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy passes TCP connections on to a server, until a test puts a fault between the two sides.
type Proxy struct {
	listener net.Listener
	running  sync.WaitGroup

	mu      sync.Mutex
	target  string
	way     way
	delay   time.Duration // of each piece, if the way is slow
	breaks  int           // bytes from the target until the next connection breaks; 0: never
	changed chan struct{} // closed when the way changes
	conns   map[net.Conn]struct{}
}

// way says what happens to connections.
type way int

const (
	open    way = iota
	slow        // each piece waits
	stalled     // accepted, and not passed on
	severed     // reset
)

// piece is how many bytes are passed on at a time, at most. With the delay of each piece, it sets
// the rate of a slow way.
const piece = 4 << 10

// NewProxy starts a proxy to the address target. It ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen for the proxy: %v", err)
	}
	p := &Proxy{target: target, listener: listener, changed: make(chan struct{}), conns: make(map[net.Conn]struct{})}
	p.running.Go(p.accept)
	t.Cleanup(func() {
		_ = listener.Close()
		p.Cut()
		p.running.Wait()
	})
	return p
}

// Addr is the host:port to connect to instead of the target.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Retarget passes new connections on to another address.
func (p *Proxy) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Cut drops all connections, and each new one at once. The proxy keeps its port, so no other
// program gets it before Restore.
func (p *Proxy) Cut() {
	p.set(severed, 0)
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		reset(conn)
	}
	clear(p.conns)
}

// Stall is a black hole: connections are accepted and stay open, and nothing passes. Pieces that
// wait arrive after Restore.
func (p *Proxy) Stall() { p.set(stalled, 0) }

// Slow delays every piece of up to 4 KiB, in either direction.
func (p *Proxy) Slow(delay time.Duration) { p.set(slow, delay) }

// Fragile resets the next connection after this many bytes from the target, the one after it after
// twice as many, and so on. So connections break at each step of the protocol.
func (p *Proxy) Fragile(first int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.breaks = first
}

// breaksAfter says after how many bytes a new connection breaks; 0: it does not.
func (p *Proxy) breaksAfter() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { p.breaks *= 2 }()
	return p.breaks
}

// Restore lets connections through again, without delay.
func (p *Proxy) Restore() { p.set(open, 0) }

func (p *Proxy) set(w way, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.way, p.delay = w, delay
	close(p.changed)
	p.changed = make(chan struct{})
}

// pass waits until a piece may go on. It returns false if it never may.
func (p *Proxy) pass() bool {
	for {
		p.mu.Lock()
		w, delay, changed := p.way, p.delay, p.changed
		p.mu.Unlock()
		switch w {
		case open:
			return true
		case severed:
			return false
		case stalled:
			<-changed
		case slow:
			timer := time.NewTimer(delay)
			select {
			case <-timer.C:
				return true
			case <-changed:
				timer.Stop()
			}
		}
	}
}

func (p *Proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return // closed: the test is over
		}
		p.running.Go(func() { p.serve(conn) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer p.drop(client)
	target, ok := p.hold(client)
	if !ok || !p.pass() {
		return
	}
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer p.drop(server)
	if _, ok := p.hold(server); !ok {
		return
	}
	// When one direction ends, both do. No protocol here uses half-closed connections.
	var pumps sync.WaitGroup
	back := io.Reader(server)
	if n := p.breaksAfter(); n > 0 {
		back = io.LimitReader(server, int64(n))
	}
	pumps.Go(func() { p.pump(server, client, client) })
	pumps.Go(func() { p.pump(client, server, back) })
	pumps.Wait()
}

func (p *Proxy) pump(to, from net.Conn, reader io.Reader) {
	defer func() {
		_ = to.Close()
		_ = from.Close()
	}()
	buffer := make([]byte, piece)
	for {
		n, err := reader.Read(buffer)
		if n > 0 {
			if !p.pass() {
				return
			}
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// hold registers a connection, so that Cut ends it, and returns its target. It returns false if the
// way is cut already.
func (p *Proxy) hold(conn net.Conn) (target string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.way == severed {
		return "", false
	}
	p.conns[conn] = struct{}{}
	return p.target, true
}

func (p *Proxy) drop(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
	reset(conn)
}

// reset closes a connection so that the peer sees a broken connection, not an orderly end.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// NewServerWithoutTLS returns the address of a server that refuses PostgreSQL's request for TLS,
// and then closes the connection.
func NewServerWithoutTLS(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, 8))
			_, _ = io.WriteString(conn, "N")
			_ = conn.Close()
		}
	}()
	return listener.Addr().String()
}
