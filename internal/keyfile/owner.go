package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
)

// owner is the owner of a file.
type owner struct{ uid, gid int }

// String returns the owner's name for people.
func (o owner) String() string { return userName(o.uid) }

func userName(uid int) string {
	if name := userArgument(uid); name != strconv.Itoa(uid) {
		return name
	}
	return "user " + strconv.Itoa(uid)
}

// userArgument returns a user as chown takes it.
func userArgument(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

func groupName(gid int) string {
	if g, err := user.LookupGroupId(strconv.Itoa(gid)); err == nil {
		return g.Name
	}
	return strconv.Itoa(gid)
}

// ownerFor returns the owner and group that a file at this path must have: those of the first of
// the files in like that exists, or of the folder. It returns false if the file simply belongs to
// the user who writes it.
func ownerFor(path string, like ...string) (owner, bool, error) {
	for _, file := range append(like, path) {
		info, err := os.Lstat(file)
		if err == nil {
			o, known := ownerOf(info)
			return o, known, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return owner{}, false, cause(err)
		}
	}
	o, known := ownerOfFolder(filepath.Dir(path))
	return o, known, nil
}

// ownerOfFolder returns the owner of a file that root creates in a folder: root works for the
// folder's owner. A folder that all users share, such as /tmp, says nothing. Files of other users
// than root are their own.
func ownerOfFolder(folder string) (owner, bool) {
	info, err := os.Stat(folder)
	if err != nil || os.Geteuid() != 0 || info.Mode()&fs.ModeSticky != 0 {
		return owner{}, false
	}
	return ownerOf(info)
}

// give changes the owner of an open file, if necessary.
func give(f *os.File, to owner) error {
	info, err := f.Stat()
	if err != nil {
		return cause(err)
	}
	has, known := ownerOf(info)
	if !known || has == to {
		return nil
	}
	// an owner may choose among their own groups; only root can give a file away
	if has.uid == to.uid {
		to.uid = -1
	}
	if err := f.Chown(to.uid, to.gid); err != nil {
		return fmt.Errorf("give it to its owner: %w", cause(err))
	}
	return nil
}
