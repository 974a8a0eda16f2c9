package keyfile

import (
	"os"
	"path/filepath"
)

// maxLinks is how many symbolic links may lead to a file, one after the other: as many as the kernel follows.
const maxLinks = 40

// Real returns where a file really is, or would be made: symbolic links are followed, those too that lead to nothing yet.
// What can't be followed stays as it is: opening it says why.
func Real(path string) string {
	followed := path
	for range maxLinks {
		resolved, err := filepath.EvalSymlinks(followed)
		if err == nil {
			return resolved
		}
		if _, err := os.Stat(followed); err == nil {
			return path // it is there, but no name leads to it: a pipe of the shell, such as /dev/fd/63
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
	return path // they lead in a circle
}
