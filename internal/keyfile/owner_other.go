//go:build !unix

package keyfile

import (
	"io/fs"
	"os"
)

// Here a file's owner is not a number.
func ownerOf(fs.FileInfo) (owner, bool) { return owner{}, false }

func shared(fs.FileInfo) bool { return false }

func readOnly(string) bool { return false }

func openPlain(path string, flags int) (*os.File, error) { return os.OpenFile(path, flags, keyMode) }
