package keyfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// probeSize is more than what is written for one change of a key: the key, the request and its answer.
const probeSize = 16 << 10

// Writable says whether this user can make files in a folder, and whether there is room for them. It leaves no trace: what it
// writes has no name, and goes with its descriptor.
func Writable(folder string) error {
	if err := unix.Access(folder, unix.W_OK|unix.X_OK); err != nil {
		return err
	}
	f, err := os.OpenFile(folder, unix.O_TMPFILE|os.O_WRONLY, keyMode)
	for _, unknown := range []error{unix.EOPNOTSUPP, unix.EISDIR, unix.ENOENT} { // to this file system, or this kernel
		if errors.Is(err, unknown) {
			return nil
		}
	}
	if err != nil {
		return cause(err)
	}
	_, err = f.Write(make([]byte, probeSize))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return cause(err)
	}
	return nil
}
