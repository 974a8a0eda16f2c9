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

const (
	groupBits = 0o070
	otherBits = 0o007
)

// CheckMode returns [ErrOpen] if other users may read the file of a private key, and [ErrOwner] if
// it belongs to another user. The file's group may read it only where a mount causes that: if root
// owns the file and we are not root, as in a Secret; or if the file is ours and has its folder's
// group, as with fsGroup. [Tighten] corrects the latter.
func CheckMode(path string, info fs.FileInfo) error {
	perm := info.Mode().Perm()
	if perm&(groupBits|otherBits) == 0 {
		return checkOwner(path, info)
	}
	has, known := ownerOf(info)
	if perm&otherBits == 0 && known && (has.uid == 0 && os.Geteuid() != 0 || groupOfFolder(path, has)) {
		return nil
	}
	return fmt.Errorf("%s: %w (mode %04o): %s", path, ErrOpen, perm, closing(path, has, known))
}

// groupOfFolder reports whether a file is ours to correct, and its group is the one of its folder.
func groupOfFolder(path string, has owner) bool {
	if euid := os.Geteuid(); euid != has.uid && euid != 0 {
		return false
	}
	info, err := os.Stat(filepath.Dir(Real(path)))
	if err != nil {
		return false
	}
	folder, known := ownerOf(info)
	return known && folder.gid == has.gid
}

// closing says how this user, or the one who must do it, closes a file that is open to other users.
func closing(path string, has owner, known bool) string {
	euid := os.Geteuid()
	switch {
	case readOnly(path) || managed(Real(path)):
		return "that is how it is mounted: mount it closed to others, in Kubernetes by defaultMode: 0440 of the " +
			"volume and the fsGroup of the pod; in Docker by the mode of the file on the host"
	case !known || has.uid == euid || euid == 0:
		return "chmod 600 " + path
	default:
		return fmt.Sprintf("it belongs to %s, who must close it: chmod 600 %s; or root gives it to this user: chown %s %s",
			has, path, userArgument(euid), path)
	}
}

// Tighten restores mode 0600 on those of the files that are ours and that a volume's mount has
// opened to a group (as Kubernetes' fsGroup does). It returns a message, or an empty text if
// nothing was changed.
func Tighten(paths ...string) string {
	var done []string
	var was fs.FileMode
	for _, path := range paths {
		f, err := openPlain(Real(path), os.O_RDONLY)
		if err != nil {
			continue // reading it gives the error
		}
		info, err := f.Stat()
		if err == nil && info.Mode().Perm()&groupBits != 0 && info.Mode().Perm()&otherBits == 0 {
			has, known := ownerOf(info)
			if known && groupOfFolder(path, has) && f.Chmod(keyMode) == nil {
				done, was = append(done, path), info.Mode().Perm()
			}
		}
		_ = f.Close() // it was only read
	}
	if len(done) == 0 {
		return ""
	}
	return fmt.Sprintf("%s: the group could read it (mode %04o), as a mount had it; mode 0600 was put back", strings.Join(done, ", "), was)
}

// unreadable says who may read a file that this user may not read.
func unreadable(path string, err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("read the key file: %w", err)
	}
	whose := "its owner"
	if info, err := os.Stat(path); err == nil {
		if has, known := ownerOf(info); known {
			whose = has.String()
		}
	}
	return fmt.Errorf("%s: %s may not read it: run this as %s, or name a file that it may read", path, userName(os.Geteuid()), whose)
}

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
