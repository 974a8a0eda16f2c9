package keyfile

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// probeSize is more than the files of one key change need: the key, the request and its answer.
const probeSize = 16 << 10

// Writable returns an error unless this user can create files in a folder and there is room for
// them. It leaves no trace: the file that it writes has no name, and disappears with its
// descriptor.
func Writable(folder string) error {
	if err := mayWrite(folder); err != nil {
		return err
	}
	f, err := nameless(folder)
	if err != nil || f == nil {
		return err
	}
	_, err = f.Write(make([]byte, probeSize))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return cause(err)
	}
	return nil
}

// nameless creates a file without a name in a folder. It returns nil if this file system or this
// kernel can't do that.
func nameless(folder string) (*os.File, error) {
	f, err := os.OpenFile(folder, unix.O_TMPFILE|os.O_WRONLY, keyMode)
	for _, unknown := range []error{unix.EOPNOTSUPP, unix.EISDIR, unix.ENOENT} {
		if errors.Is(err, unknown) {
			return nil, nil //nolint:nilnil // then nothing can be tried
		}
	}
	if err != nil {
		return nil, cause(err)
	}
	return f, nil
}

// mayWrite returns an error unless this user may create and rename files in a folder, whether there
// is room or not.
func mayWrite(folder string) error {
	if err := unix.Access(folder, unix.W_OK|unix.X_OK); err != nil {
		return err
	}
	var stat unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, folder, 0, 0, &stat) == nil && stat.Attributes&unix.STATX_ATTR_APPEND != 0 {
		return unix.EPERM // files can be created in it, and never renamed
	}
	return nil
}

// tryGive returns an error unless a file that is created in a folder can be given to an owner.
func tryGive(folder string, to owner) error {
	f, err := nameless(folder)
	if err != nil || f == nil {
		return nil //nolint:nilerr // there may be no room: that is another matter
	}
	return errors.Join(give(f, to), f.Close())
}
