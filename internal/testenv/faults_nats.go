package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Connect connects to a broker through the faults, with the options of a program that runs for
// long.
func (f *Faults) Connect(url string) (*nats.Conn, error) {
	return nats.Connect(url, nats.SetCustomDialer(f), nats.MaxReconnects(-1), nats.Timeout(faultTimeout),
		nats.ReconnectWait(5*time.Millisecond), nats.ReconnectJitter(5*time.Millisecond, 0),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
}

// Hasten makes the broker soon send again what a durable has not acknowledged. It does nothing if
// the durable does not exist.
func Hasten(ctx context.Context, js jetstream.JetStream, stream, durable string) error {
	const soon = 250 * time.Millisecond
	consumer, err := js.Consumer(ctx, stream, durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("hasten %s: %w", durable, err)
	}
	config := consumer.CachedInfo().Config
	if config.AckWait <= soon {
		return nil
	}
	config.AckWait = soon
	if _, err := js.UpdateConsumer(ctx, stream, config); err != nil {
		return fmt.Errorf("hasten %s: %w", durable, err)
	}
	return nil
}

// Dial connects to a broker through the faults; it is a nats.CustomDialer. A step is a message that
// the client publishes (a request to JetStream, a pull, an acknowledgement, …) or a subscription. A
// step that fails breaks the connection. The broker gets what the client wrote before that step, or
// that step too. The client gets no answer to it.
func (f *Faults) Dial(network, address string) (net.Conn, error) {
	if f.Dead() {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%T is not a TCP connection", conn), conn.Close())
	}
	faulty := &faultyLine{TCPConn: tcp, faults: f}
	if !f.hold(faulty) {
		_ = conn.Close()
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	return faulty, nil
}

// faultyLine is a connection to a broker. It understands just enough of NATS' protocol to tell one
// operation from the next, because nats.go writes many at once.
type faultyLine struct {
	*net.TCPConn
	faults *Faults

	mu     sync.Mutex
	begun  []byte // an operation that is not complete yet
	broken bool
}

// Write passes on complete operations, up to the one that the fault strikes. It returns no error
// for that one: as with a real connection, the kernel has taken the bytes, and the client notices
// later.
func (l *faultyLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken {
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}
	}
	l.begun = append(l.begun, p...)
	whole := 0
	for !l.broken {
		n, what := operation(l.begun[whole:])
		if n == 0 {
			break
		}
		if what != "" {
			switch l.faults.step(what) {
			case notDone:
				l.broken, n = true, 0
			case lost:
				l.broken = true
			default:
			}
		}
		whole += n
	}
	_, err := l.TCPConn.Write(l.begun[:whole])
	if l.broken {
		return len(p), errors.Join(err, l.CloseWrite())
	}
	l.begun = append(l.begun[:0], l.begun[whole:]...)
	return len(p), err
}

// Read returns nothing more once the connection is broken, and waits until the broker has closed
// its end.
func (l *faultyLine) Read(p []byte) (int, error) {
	n, err := l.TCPConn.Read(p)
	for l.isBroken() {
		if err != nil {
			return 0, io.ErrUnexpectedEOF
		}
		_, err = l.TCPConn.Read(p)
	}
	return n, err
}

// cut breaks the connection. The broker reads what was written, and then the end.
func (l *faultyLine) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.broken {
		l.broken = true
		_ = l.CloseWrite() // fails only if the connection is gone
	}
}

func (l *faultyLine) isBroken() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken
}

// Close closes the connection.
func (l *faultyLine) Close() error {
	l.faults.drop(l)
	return l.TCPConn.Close()
}

// operation returns the length of the first operation in b, or 0 if it is not complete, and the
// name of the step. The name is empty if the operation is not a step.
func operation(b []byte) (n int, what string) {
	line, _, found := bytes.Cut(b, []byte("\r\n"))
	if !found {
		return 0, ""
	}
	n = len(line) + 2
	fields := strings.Fields(string(line))
	if len(fields) < 2 {
		return n, ""
	}
	switch fields[0] {
	case "PUB", "HPUB":
		size, err := strconv.Atoi(fields[len(fields)-1])
		if n += size + 2; err != nil || len(b) < n {
			return 0, ""
		}
		return n, "PUB " + family(fields[1])
	case "SUB":
		if strings.HasPrefix(fields[1], "$SRV.") { // discovery of micro services
			return n, ""
		}
		return n, "SUB " + family(fields[1])
	default: // CONNECT, PING, PONG, UNSUB
		return n, ""
	}
}

// family is the part of a subject that says what a message is for, without the service.
func family(subject string) string {
	tokens := strings.Split(subject, ".")
	keep := 3 // omi.v1.receipts
	switch tokens[0] {
	case "$JS":
		if keep = 4; len(tokens) > 1 && tokens[1] == "ACK" { // $JS.API.CONSUMER.MSG, a pull
			keep = 2
		}
	case "_INBOX":
		keep = 1
	}
	return strings.Join(tokens[:min(keep, len(tokens))], ".")
}
