package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyformat"
)

// Create writes a key, in PKCS #8 PEM, to a file that must not exist yet.
func Create(path string, key events.SigningKey) error {
	if err := absent(path); err != nil {
		return err
	}
	return Replace(path, path, key)
}

// Replace writes a key, in PKCS #8 PEM, to a file, and replaces what is there. [WriteFile] explains
// like.
func Replace(path, like string, key events.SigningKey) error {
	content, err := keyformat.EncodePrivate(key, keyformat.PEM)
	if err != nil {
		return err
	}
	return WriteFile(path, like, content)
}

// CreateFile writes a file of mode 0600 that must not exist yet, or returns [ErrExists].
func CreateFile(path string, content []byte) error {
	if err := absent(path); err != nil {
		return err
	}
	return WriteFile(path, path, content)
}

func absent(path string) error {
	if path == "-" { // it means the standard output elsewhere
		return errors.New("a private key is never printed: name a file, and not -")
	}
	info, err := os.Lstat(path)
	if err == nil && info.IsDir() {
		return fmt.Errorf("%s is a folder: name a file in it", path)
	}
	if err == nil {
		return fmt.Errorf("%s: %w: name another file", path, ErrExists)
	}
	return nil
}

// WriteFile writes a file of mode 0600. The file is complete and on the disk, or it doesn't exist.
// Its owner and group are those of the file like, of the file that it replaces, or of the folder,
// whichever exists first. A crash may leave PATH.new, which the next call removes.
func WriteFile(path, like string, content []byte) (err error) {
	path = Real(path)
	to, known, err := ownerFor(path, like)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	temporary := path + ".new"
	_ = os.Remove(temporary) // if this fails, O_EXCL gives the error
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, keyMode)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write %s: there is no folder %s", path, filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temporary)
			err = fmt.Errorf("write %s: %w", path, cause(err))
		}
	}()
	_, err = f.Write(content)
	if known {
		err = errors.Join(err, give(f, to))
	}
	if err := errors.Join(err, f.Chmod(keyMode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return Rename(temporary, path)
}

// cause returns an error of the system without the file's name: PATH.new is not the name that the
// reader knows.
func cause(err error) error {
	if of := (*fs.PathError)(nil); errors.As(err, &of) {
		return of.Err
	}
	return err
}

// Touch creates a file of mode 0600 if it does not exist, and gives it to the owner of the file
// like, or of the folder.
func Touch(path, like string) error {
	to, known, err := ownerFor(path, like)
	if err != nil {
		return err
	}
	f, err := openPlain(path, os.O_RDONLY|os.O_CREATE)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: there is no folder %s", path, filepath.Dir(path))
	}
	if errors.Is(err, fs.ErrPermission) {
		return unreadable(path, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, cause(err))
	}
	if known {
		err = give(f, to)
	}
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		err = nil // it exists and may be opened: its owner doesn't matter
	}
	return errors.Join(err, f.Close())
}

// Rename replaces one file by another, and gives it to the owner of the replaced file. When it
// returns, the change is on the disk.
func Rename(from, to string) error {
	if err := giveAs(from, to); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(to))
}

// giveAs gives a file to the owner of another, if that exists.
func giveAs(path, like string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	to, known, err := ownerFor(path, like)
	if has, _ := ownerOf(info); err != nil || !known || has == to {
		return err
	}
	f, err := openPlain(path, os.O_RDONLY)
	if err != nil {
		return err
	}
	return errors.Join(give(f, to), f.Close())
}

// Remove deletes a file, on the disk, too, when it returns. A file that does not exist is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// MakeFolder creates a folder that only its owner may enter, and those above it, on the disk, too,
// when it returns. A folder that exists stays as it is.
func MakeFolder(path string) error {
	var missing []string
	for folder := filepath.Clean(path); ; folder = filepath.Dir(folder) {
		if _, err := os.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		missing = append(missing, folder)
	}
	if len(missing) == 0 {
		return os.MkdirAll(path, folderMode) // this gives the error if it is no folder
	}
	for _, folder := range slices.Backward(missing) {
		if err := makeFolder(folder); err != nil {
			return err
		}
	}
	return nil
}

// makeFolder creates a folder, and gives it to the owner of the one above.
func makeFolder(path string) error {
	if err := os.Mkdir(path, folderMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if to, known := ownerOfFolder(filepath.Dir(path)); known {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		if err := errors.Join(give(f, to), f.Close()); err != nil {
			return fmt.Errorf("make the folder %s: %w", path, err)
		}
	}
	return syncFolder(filepath.Dir(path))
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
