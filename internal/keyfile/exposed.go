package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ErrOwner means that the file of a private key belongs to another user, who can read and replace
// it.
var ErrOwner = errors.New("the key file belongs to another user")

// checkOwner returns [ErrOwner] unless a private key belongs to us or to root. Root itself may read
// any file: it works for the service that owns the key, and [Foreign] warns if it doesn't.
func checkOwner(path string, info fs.FileInfo) error {
	has, known := ownerOf(info)
	if euid := os.Geteuid(); known && has.uid != euid && has.uid != 0 && euid != 0 {
		return fmt.Errorf("%s: %w: it belongs to %s, and this runs as %s: run it as %s, or let root change its owner: chown %s %s",
			path, ErrOwner, has, userName(euid), has, userArgument(euid), path)
	}
	return nil
}

// Foreign names the key files that root uses for itself although other users own them, and says
// what to do. It returns an empty text if there are none.
func Foreign(paths ...string) string {
	if os.Geteuid() != 0 {
		return ""
	}
	var said []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			continue // reading it gives the error
		}
		if has, known := ownerOf(info); known && has.uid != 0 {
			said = append(said, fmt.Sprintf("%s belongs to %s, who can read and replace it, and root uses it: run this as %s, or chown root %s",
				path, has, has, path))
		}
	}
	return strings.Join(said, "; ")
}

// OpenFolders names the folders of these files in which other users may replace files, and says
// what to do. It returns an empty text if there are none. Such users may remove a key or bring back
// an older one, but can't plant a key of their own, which [CheckMode] refuses. A group that may
// write is often the owner's own, or a pod's.
func OpenFolders(paths ...string) string {
	var folders, said []string
	for _, path := range paths {
		if path == "" {
			continue
		}
		folder := filepath.Dir(Real(path))
		info, err := os.Stat(folder)
		if err != nil || info.Mode().Perm()&0o002 == 0 || info.Mode()&fs.ModeSticky != 0 || slices.Contains(folders, folder) {
			continue
		}
		folders = append(folders, folder)
		said = append(said, fmt.Sprintf("all users may write in %s (mode %04o), so they can remove %s or bring an older key back: "+
			"chmod o-w %s, or keep the key in a folder of its own there", folder, info.Mode().Perm(), path, folder))
	}
	return strings.Join(said, "; ")
}
