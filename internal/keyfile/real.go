package keyfile

import (
	"os"
	"path/filepath"
)

// maxLinks limits the symbolic links on the way to a file, as the kernel does.
const maxLinks = 40

// Real returns where a file really is, or would be created. It follows symbolic links, even those
// that lead to nothing yet. A path that can't be followed stays as it is: opening it gives the
// error.
func Real(path string) string {
	followed := path
	for range maxLinks {
		resolved, err := filepath.EvalSymlinks(followed)
		if err == nil {
			return resolved
		}
		if _, err := os.Stat(followed); err == nil {
			// it exists, but no name leads to it: a pipe of the shell, such as /dev/fd/63
			return path
		}
		if folder, err := filepath.EvalSymlinks(filepath.Dir(followed)); err == nil {
			followed = filepath.Join(folder, filepath.Base(followed))
		}
		next, err := os.Readlink(followed)
		if err != nil {
			return followed
		}
		if !filepath.IsAbs(next) {
			next = filepath.Join(filepath.Dir(followed), next)
		}
		followed = next
	}
	return path // the links form a circle
}
