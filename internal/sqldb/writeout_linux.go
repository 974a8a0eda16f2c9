package sqldb

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	writeOutSteps = 128
	writeOutLeast = 1 << 20 // bytes of the file a step
	writeOutPause = time.Millisecond
)

// writeOut has the system begin to write to the disk what it holds of a file, in steps with pauses, so that whoever waits for the
// disk meanwhile waits behind a few pages and not behind thousands. It is what the system does by itself some time later: no step
// waits for the disk, nor takes notice of an error, which is for the next fsync to find. Nothing relies on it. Where the cores are
// busy a pause may last ten times as long: then there is none until the steps are on time again.
func writeOut(ctx context.Context, path string) {
	fd, size := descriptor(path)
	step := max(writeOutLeast, (size+writeOutSteps-1)/writeOutSteps)
	due := time.Now()
	for from := int64(0); from < size; from += step {
		if unix.SyncFileRange(fd, from, step, unix.SYNC_FILE_RANGE_WRITE) != nil {
			return
		}
		due = due.Add(writeOutPause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(due)):
		}
	}
}

// descriptor returns a descriptor that SQLite has of a file, and the file's size; 0: there is none. One of our own would end all locks
// that this process has on the file, SQLite's, when it is closed. If SQLite closes this one meanwhile and it becomes another file's,
// that one is written out, which does no harm.
func descriptor(path string) (fd int, size int64) {
	const folder = "/proc/self/fd"
	file, err := os.Stat(path)
	if err != nil {
		return 0, 0
	}
	list, err := os.ReadDir(folder)
	if err != nil {
		return 0, 0
	}
	for _, one := range list {
		other, err := os.Stat(filepath.Join(folder, one.Name()))
		if err != nil || !os.SameFile(file, other) {
			continue
		}
		if fd, err := strconv.Atoi(one.Name()); err == nil {
			return fd, file.Size()
		}
	}
	return 0, 0
}
