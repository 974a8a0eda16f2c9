package client

import (
	"context"
	"crypto"
	"errors"

	"omiappreg.org/keyrotation/internal/keyfile"
)

// Errors of key stores.
var (
	// ErrNoKey means that a slot of the key store is empty.
	ErrNoKey = errors.New("there is no such key in the key store")
	// ErrLocked means that another process changes the keys of this key store.
	ErrLocked = errors.New("another process uses the key store")
	// ErrNotReplaceable means that a new key can't replace the current one in its file: the file is
	// a mount of its own, in a read-only folder, a hard link, or not this user's to replace.
	ErrNotReplaceable = keyfile.ErrNotReplaceable
)

// Slot is a place for a key in a key store.
type Slot string

// The two slots.
const (
	Current Slot = "current" // the key that the service signs with
	Pending Slot = "pending" // the key that a request under way asks for
)

// Keys keeps a service's private keys. A folder does ([OpenFolder]); a KMS or an HSM can replace
// it. When a method returns nil, its effect survives a crash. A [Client] calls the methods from one
// goroutine at a time; its callers use the signers from many.
type Keys interface {
	// Signer returns the Ed25519 key in a slot, or [ErrNoKey].
	Signer(ctx context.Context, slot Slot) (crypto.Signer, error)
	// Generate makes a new key in a slot, and replaces the one that is there. The request for it
	// goes out next: it must be where a crash can't lose it.
	Generate(ctx context.Context, slot Slot) (crypto.Signer, error)
	// Promote makes the pending key the current one, at once or not at all, and leaves the pending
	// slot empty.
	Promote(ctx context.Context) error
}

// Locker is a key store that several processes may have open at a time. One of them holds the lock,
// and changes the keys; the others follow it. A [Folder] is one. Keys that several machines share
// need a lock that all of them respect, such as a lease. A lease must be renewed for as long as the
// lock is held, and a process that can't renew it must end. If it went on, two would rotate, and
// the slower one would sign with a key that has ended. Without this method, one [Client] at a time
// may use the store.
type Locker interface {
	// TryLock takes the lock, or fails with an error that wraps [ErrLocked] if it is held. It
	// doesn't wait for the lock. The lock ends with release, and with the process.
	TryLock(ctx context.Context) (release func() error, err error)
}

// Journal keeps one short text: what is under way. It holds no secret.
type Journal interface {
	// Load returns what was saved last, or nothing.
	Load(ctx context.Context) ([]byte, error)
	// Save replaces the text, at once or not at all. When it returns nil, the text survives a
	// crash.
	Save(ctx context.Context, text []byte) error
}

// KeyStore is where a service keeps what it must not lose. To keep the keys elsewhere and the
// journal in a folder, embed a [Folder] in a type with the three methods of [Keys]. The lock is
// then the folder's.
type KeyStore interface {
	Keys
	Journal
}
