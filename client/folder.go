package client

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/gofrs/flock"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/keyformat"
)

const (
	fileMode  = 0o600
	folderKey = "key.pem"

	pendingSuffix = ".pending"
	journalSuffix = ".journal"
	lockSuffix    = ".lock"
)

// Folder is a [KeyStore] in files of mode 0600, each written to the disk whole or not at all:
//
//	FILE          the current key, PKCS #8 in PEM
//	FILE.pending  the new key that a request under way asks for
//	FILE.journal  that request, and its answer
//	FILE.lock     locked by the process that changes the keys
//
// If FILE is a symbolic link, or is behind one, the files are where the link led when the store was
// opened.
type Folder struct {
	file string // with links followed

	locking sync.Mutex
	lock    *flock.Flock // nil: not held
}

// errKeyGiven is the answer to a private key instead of a path, which other errors would quote.
var errKeyGiven = errors.New("open the key store: this is a private key itself, not the name of its file or folder")

// OpenFolder opens the key store in a folder, where FILE is key.pem, and makes the folder if it is
// missing. Any number of processes may have it open: the [Client] of one of them locks it, and
// changes the keys. It fails as [OpenFile] does.
func OpenFolder(path string) (*Folder, error) {
	if keyformat.LooksPrivate(path) {
		return nil, errKeyGiven
	}
	if err := keyfile.MakeFolder(path); err != nil {
		return nil, fmt.Errorf("open the key store: %w", err)
	}
	return OpenFile(filepath.Join(path, folderKey))
}

// OpenFile opens the key store next to the key in a file. If the path is a folder, its key.pem is
// meant. It fails with [ErrNotReplaceable] if no rotation could replace the current key by a new
// one.
func OpenFile(path string) (*Folder, error) {
	if keyformat.LooksPrivate(path) {
		return nil, errKeyGiven
	}
	f := &Folder{file: KeyFile(path)}
	if err := keyfile.Replaceable(f.file); err != nil {
		return nil, fmt.Errorf("open the key store: %w", err)
	}
	return f, nil
}

// TryLock implements [Locker].
func (f *Folder) TryLock(context.Context) (release func() error, err error) {
	f.locking.Lock()
	defer f.locking.Unlock()
	lock := flock.New(f.file+lockSuffix, flock.SetPermissions(fileMode))
	locked := false
	if f.lock == nil {
		if err := keyfile.Touch(f.file+lockSuffix, f.file); err != nil {
			return nil, fmt.Errorf("lock the key store: %w", err)
		}
		if locked, err = lock.TryLock(); err != nil {
			return nil, fmt.Errorf("lock the key store: %w", err)
		}
	}
	if !locked {
		return nil, fmt.Errorf("%s: %w: let that one rotate, or stop it first", f.file, ErrLocked)
	}
	f.lock = lock
	return f.Close, nil
}

// tightener is a store in files, or one that has a [Folder] in it.
type tightener interface {
	// tighten takes the files away from other readers, if a mount has let a group in, and returns a
	// sentence about it.
	tighten() string
	// exposed says who may put other files in their place.
	exposed() string
}

func (f *Folder) tighten() string {
	return keyfile.Tighten(f.file, f.file+pendingSuffix, f.file+journalSuffix, f.file+lockSuffix)
}

func (f *Folder) exposed() string { return keyfile.OpenFolders(f.file) }

// KeyFile returns the file of the current key: the path itself, or its key.pem if the path is a
// folder. It follows a symbolic link.
func KeyFile(path string) string {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, folderKey)
	}
	return keyfile.Real(path)
}

// PendingFile returns the file of the requested key, which is next to a key's file, or in a folder.
func PendingFile(path string) string { return KeyFile(path) + pendingSuffix }

// JournalFile returns the file that exists while a change is under way.
func JournalFile(path string) string { return KeyFile(path) + journalSuffix }

// LockFile returns the file that is locked by the process that changes the keys.
func LockFile(path string) string { return KeyFile(path) + lockSuffix }

// Close releases the lock, if it is held. Close the [Client] first.
func (f *Folder) Close() error {
	f.locking.Lock()
	defer f.locking.Unlock()
	if f.lock == nil {
		return nil
	}
	lock := f.lock
	f.lock = nil
	return lock.Close()
}

func (f *Folder) path(slot Slot) string {
	if slot == Pending {
		return f.file + pendingSuffix
	}
	return f.file
}

// Signer implements [Keys].
func (f *Folder) Signer(_ context.Context, slot Slot) (crypto.Signer, error) {
	key, err := keyfile.Read(f.path(slot))
	if errors.Is(err, keyfile.ErrMissing) {
		return nil, fmt.Errorf("%s: %w", f.path(slot), ErrNoKey)
	}
	if err != nil {
		return nil, err
	}
	return key.Private(), nil
}

// Generate implements [Keys].
func (f *Folder) Generate(_ context.Context, slot Slot) (crypto.Signer, error) {
	key := events.GenerateSigningKey()
	if err := keyfile.Replace(f.path(slot), f.file, key); err != nil {
		return nil, err
	}
	return key.Private(), nil
}

// Promote implements [Keys].
func (f *Folder) Promote(context.Context) error {
	if err := keyfile.Rename(f.path(Pending), f.path(Current)); err != nil {
		return fmt.Errorf("make the pending key the current one: %w", err)
	}
	return nil
}

// Load implements [Journal].
func (f *Folder) Load(context.Context) ([]byte, error) {
	text, err := os.ReadFile(f.file + journalSuffix)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	return text, nil
}

// Save implements [Journal].
func (f *Folder) Save(_ context.Context, text []byte) error {
	if len(text) == 0 {
		if err := keyfile.Remove(f.file + journalSuffix); err != nil {
			return fmt.Errorf("end the journal: %w", err)
		}
		return nil
	}
	return keyfile.WriteFile(f.file+journalSuffix, f.file, text)
}

// lookEvery is how often the key file is read: a network file system does not report changes by
// another machine.
const lookEvery = 900 * time.Millisecond

// watch returns a channel that reports, until ctx ends, that the file of the current key may have
// changed: at once if the system reports it, and within a second otherwise.
func (f *Folder) watch(ctx context.Context) <-chan struct{} {
	changed := make(chan struct{}, 1)
	last := f.digest() // before the key is read, so that no change is missed
	go func() {
		var told <-chan fsnotify.Event
		var faults <-chan error
		watcher, err := fsnotify.NewWatcher()
		if err == nil {
			defer func() { _ = watcher.Close() }()
			err = watcher.Add(filepath.Dir(f.file))
		}
		if err == nil { // otherwise the system has no more watches to give, and looking is enough
			told, faults = watcher.Events, watcher.Errors
		}
		look := time.NewTicker(lookEvery)
		defer look.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case e, more := <-told:
				if !more {
					told = nil
				}
				if filepath.Base(e.Name) != filepath.Base(f.file) {
					continue
				}
			case _, more := <-faults: // events were lost: looking finds what they said
				if !more {
					faults = nil
				}
			case <-look.C:
			}
			if now := f.digest(); !bytes.Equal(now, last) {
				last = now
				select {
				case changed <- struct{}{}:
				default: // it is known
				}
			}
		}
	}()
	return changed
}

// digest tells one content of the key file from another.
func (f *Folder) digest() []byte {
	content, err := os.ReadFile(f.file)
	if err != nil {
		return []byte(err.Error())
	}
	sum := sha256.Sum256(content)
	return sum[:]
}
