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

// owner is whose a file is.
type owner struct{ uid, gid int }

// String is the owner as a person knows it.
func (o owner) String() string { return userName(o.uid) }

func userName(uid int) string {
	if name := userArgument(uid); name != strconv.Itoa(uid) {
		return name
	}
	return "user " + strconv.Itoa(uid)
}

// userArgument is a user as chown takes it.
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

// ownerFor returns whose a file has to be that is written to a path: the owner and group of the first of these files that is
// there, or of the folder; false: it is of whom writes it.
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

// ownerOfFolder returns whose a file is that root makes in a folder: root works for whose folder that is. A folder that all
// share, such as /tmp, says nothing; and what others than root make is theirs.
func ownerOfFolder(folder string) (owner, bool) {
	info, err := os.Stat(folder)
	if err != nil || os.Geteuid() != 0 || info.Mode()&fs.ModeSticky != 0 {
		return owner{}, false
	}
	return ownerOf(info)
}

// give makes an open file the owner's, if it is not that already.
func give(f *os.File, to owner) error {
	info, err := f.Stat()
	if err != nil {
		return cause(err)
	}
	has, known := ownerOf(info)
	if !known || has == to {
		return nil
	}
	if has.uid == to.uid { // an owner may choose among the own groups, and only root gives a file away
		to.uid = -1
	}
	if err := f.Chown(to.uid, to.gid); err != nil {
		return fmt.Errorf("give it to its owner: %w", cause(err))
	}
	return nil
}
