package bench

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// FlushFolder makes the system write the cached data of a folder's files to the disk, and waits for it.
// Don't use it for SQLite's files: closing one of them would end the locks that this process has on
// it.
func FlushFolder(folder string) error {
	return filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() {
			err = syncFile(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the broker creates and removes files all the time
		}
		return err
	})
}

func syncFile(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("write a file to the disk: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err := file.Sync(); err != nil {
		return fmt.Errorf("write a file to the disk: %w", err)
	}
	return nil
}
