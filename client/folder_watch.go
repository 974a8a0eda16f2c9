package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

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
