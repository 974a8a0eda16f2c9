package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
