package client

import (
	"crypto"
	"crypto/ed25519"
	"errors"
	"io"
	"time"

	"omiappreg.org/keyrotation/events"
)

// ErrOptions means that a [Signer] was asked for something other than pure Ed25519 over the message
// itself.
var ErrOptions = errors.New("the key signs messages, not digests: give crypto.Hash(0)")

// ErrReserved means that a [Signer] was asked to sign what it does not sign for others: a request
// to the registry, or a text that begins as the signature base of an HTTP message does
// (docs/signing.md). The holder of such a signature could give the service another key.
var ErrReserved = events.ErrReserved

// Signer signs with the key that will be accepted: the old one until everyone has heard of the new
// one, then the new one. It is a [crypto.Signer] of pure Ed25519 (RFC 8032). Any number of
// goroutines may use it; a rotation costs them nothing.
//
// Its Public and Sign may use two different keys, one before and one after a switch. If you need a
// pair that belongs together, call [Signer.Key].
type Signer struct{ client *Client }

var _ Identity = (*Signer)(nil)

// signing is what a Signer reads: the key, or a wait until it is known.
type signing struct {
	key    crypto.Signer
	public events.PublicKey
	wait   chan struct{} // nil: no wait; otherwise closed when there is another signing to look at
	until  time.Time     // no longer than this, whatever keeps run from ending the wait
}

// Target returns the service that it signs for.
func (s *Signer) Target() events.Target { return s.client.cfg.Target }

// Key returns the key to use now. Use it for one message: the next may need another. The key itself
// signs anything: use [Signer.Sign] for bytes that others hand to the service.
func (s *Signer) Key() (key crypto.Signer, public events.PublicKey) {
	var enough <-chan time.Time
	for {
		now := s.client.signing.Load()
		if now.wait == nil {
			return now.key, now.public
		}
		if enough == nil {
			enough = time.After(time.Until(now.until))
		}
		select {
		case <-now.wait:
		case <-enough:
			return now.key, now.public
		}
	}
}

// Public returns the public half, an [ed25519.PublicKey], of the key that would sign now.
func (s *Signer) Public() crypto.PublicKey {
	_, public := s.Key()
	return ed25519.PublicKey(public.Bytes())
}

// Sign signs a message. opts must be crypto.Hash(0); rand is not used. It fails if the key is
// missing or, being elsewhere, can't be reached. It fails with [ErrReserved] so that no one can
// have the service sign more than it knows of.
func (s *Signer) Sign(rand io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := events.CheckMessage(message); err != nil {
		return nil, err
	}
	return s.signOwn(rand, message, opts)
}

// signOwn is Sign for texts that this package has put together.
func (s *Signer) signOwn(rand io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts != nil && opts.HashFunc() != 0 {
		return nil, ErrOptions
	}
	if with, ok := opts.(*ed25519.Options); ok && with.Context != "" {
		return nil, ErrOptions
	}
	key, _ := s.Key()
	if key == nil {
		return nil, ErrNoKey
	}
	return key.Sign(rand, message, crypto.Hash(0))
}
