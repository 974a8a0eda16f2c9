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

// ErrOwner means that the file of a private key is another user's, who can read and replace it.
var ErrOwner = errors.New("the key file belongs to another user")

// checkOwner returns [ErrOwner] unless a private key is ours or root's. Root itself reads what it is told to: it works for the
// service whose key that is, and [Foreign] says where it doesn't.
func checkOwner(path string, info fs.FileInfo) error {
	has, known := ownerOf(info)
	if euid := os.Geteuid(); known && has.uid != euid && has.uid != 0 && euid != 0 {
		return fmt.Errorf("%s: %w: it is %s's, and this runs as %s: run it as %s, or let root give the file away, by chown %s %s",
			path, ErrOwner, has, userName(euid), has, userArgument(euid), path)
	}
	return nil
}

// Foreign says whose the keys are that root uses for itself and that others own, and what to do; nothing, where there are none.
func Foreign(paths ...string) string {
	if os.Geteuid() != 0 {
		return ""
	}
	var said []string
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			continue // reading it says why
		}
		if has, known := ownerOf(info); known && has.uid != 0 {
			said = append(said, fmt.Sprintf("%s is %s's, who can read and replace it, and root uses it: run this as %s, or chown root %s",
				path, has, has, path))
		}
	}
	return strings.Join(said, "; ")
}

// OpenFolders says in which folders others may put other files in place of these, and what to do; nothing, if they may not. They may
// take a key away, or bring back an older one, though none of their own, which [CheckMode] refuses. A group that may write is often
// the owner's own, or a pod's.
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
		said = append(said, fmt.Sprintf("all users may write in %s (mode %04o), and so take %s away or bring an older key back: "+
			"chmod o-w %s, or keep the key in a folder of its own there", folder, info.Mode().Perm(), path, folder))
	}
	return strings.Join(said, "; ")
}
