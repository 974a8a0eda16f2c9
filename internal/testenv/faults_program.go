package testenv

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Program is a program that a fault may strike.
type Program struct {
	Run   func(context.Context) error // until the context ends
	Close func() error                // nil: there is nothing to close
}

// Heirs run a program on a broker. If it dies of its fault, another one takes over. They live for
// one run of [EveryStep].
type Heirs struct {
	// JetStream is the test's own, without faults.
	JetStream jetstream.JetStream
	// Open makes a program with a connection to the broker. Its steps are counted once it runs.
	Open func(conn *nats.Conn, faults *Faults) (Program, error)
	// Stream and Durable are what the program consumes.
	Stream, Durable string

	broker        string // its URL
	faults        *Faults
	own           *nats.Conn
	first, second *heir
}

// heir is a running program.
type heir struct {
	Program
	conn  *nats.Conn
	stop  context.CancelFunc
	ended chan error
}

// NewHeirs connects the test itself to an account of its own.
func NewHeirs(accounts *Accounts, account string, faults *Faults) (*Heirs, error) {
	url, err := accounts.Account(account)
	if err != nil {
		return nil, err
	}
	conn, err := nats.Connect(url, nats.Timeout(faultTimeout))
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("use JetStream: %w", err)
	}
	return &Heirs{JetStream: js, broker: url, faults: faults, own: conn}, nil
}

// Start runs the first program, which the fault may strike.
func (h *Heirs) Start(ctx context.Context) (err error) {
	h.first, err = h.start(ctx, h.faults)
	return err
}

func (h *Heirs) start(ctx context.Context, faults *Faults) (*heir, error) {
	conn, err := faults.Connect(h.broker)
	if err != nil {
		return nil, err
	}
	one := &heir{conn: conn, ended: make(chan error, 1)}
	if one.Program, err = h.Open(conn, faults); err != nil {
		conn.Close()
		return nil, err
	}
	faults.Arm()
	// It has no deadline. With one, nats.go would wait that long for each answer, instead of 5 s.
	ctx, one.stop = context.WithCancel(context.WithoutCancel(ctx))
	go func() { one.ended <- one.Run(ctx) }()
	return one, nil
}

// Nurse does what happens in the world after a fault: it replaces a dead program, and makes time
// pass until the broker sends again what was not acknowledged.
func (h *Heirs) Nurse(ctx context.Context) (err error) {
	if h.faults.Struck() == "" {
		return nil
	}
	if h.faults.Dead() && h.second == nil {
		h.first.conn.Close()
		h.first.stop()
		if h.second, err = h.start(ctx, NewFaults(Fault{})); err != nil {
			return err
		}
	}
	return Hasten(ctx, h.JetStream, h.Stream, h.Durable)
}

// Quiet calls Nurse until quiet says that nothing is left to do.
func (h *Heirs) Quiet(ctx context.Context, quiet func() (bool, error)) error {
	const pollEvery = 5 * time.Millisecond
	for {
		done, err := quiet()
		if err != nil || done {
			return err
		}
		if err := h.Nurse(ctx); err != nil {
			return err
		}
		select {
		case <-time.After(pollEvery):
		case <-ctx.Done():
			return fmt.Errorf("something is left to do: %w", ctx.Err())
		}
	}
}

// End stops the programs, and returns the errors with which they ended.
func (h *Heirs) End() error {
	defer h.own.Close()
	return errors.Join(h.first.end(), h.second.end())
}

func (one *heir) end() error {
	if one == nil {
		return nil
	}
	one.stop()
	err := <-one.ended
	one.conn.Close()
	if err != nil {
		err = fmt.Errorf("the program ended with %w", err)
	}
	if one.Close != nil {
		err = errors.Join(err, one.Close())
	}
	return err
}
