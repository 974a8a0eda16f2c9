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

// CheckMode returns [ErrOpen] if others may read the file of a private key, and [ErrOwner] if it is another user's. Its group may only where a mount makes it so:
// where root owns the file and we are not root, as of a Secret, and where it is ours and the group is its folder's, as fsGroup
// has it; [Tighten] puts the latter right.
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

// groupOfFolder reports whether a file is ours to put right, and its group is the one of its folder.
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

// closing says how a file that is open to others is closed to them by who reads this, or who has to.
func closing(path string, has owner, known bool) string {
	euid := os.Geteuid()
	switch {
	case readOnly(path) || managed(Real(path)):
		return "that is how it is mounted: mount it so that others have no part in it, in Kubernetes by defaultMode: 0440 of the " +
			"volume and the fsGroup of the pod; in Docker by the mode of the file on the host"
	case !known || has.uid == euid || euid == 0:
		return "chmod 600 " + path
	default:
		return fmt.Sprintf("it is %s's, who has to close it, by chmod 600 %s; or root gives it to whom this runs as, by chown %s %s",
			has, path, userArgument(euid), path)
	}
}

// Tighten puts mode 0600 back on those of the files that are ours and that the mount of a volume has let a group read
// (Kubernetes' fsGroup does so). It returns what to say of it: nothing, if there was nothing to do or nothing could be done.
func Tighten(paths ...string) string {
	var done []string
	var was fs.FileMode
	for _, path := range paths {
		f, err := openPlain(Real(path), os.O_RDONLY)
		if err != nil {
			continue // reading it says why
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

// unreadable says who may read a file that this user may not.
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
