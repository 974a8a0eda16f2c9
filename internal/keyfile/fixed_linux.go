package keyfile

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fixed says why a file can't be replaced by another one, and what to do: it is a mount of its own,
// or can't be changed.
func fixed(path string) (why, do string) {
	var stat unix.Statx_t
	known := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &stat) == nil
	mounted := stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	if !known || stat.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 { // before Linux 5.8
		mounted = isMountPoint(path)
	}
	switch {
	case mounted:
		return "the file is a mount of its own, which a new file can't replace", mountFolder
	case stat.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0:
		return "the file can't be changed (chattr +i or +a)", "chattr -i -a " + path
	}
	return "", ""
}

// isMountPoint looks for a path among the mounts of this process.
func isMountPoint(path string) bool {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	if path, err = filepath.Abs(path); err != nil {
		return false
	}
	const pointField = 4 // the mount point, as the manual page proc_pid_mountinfo says
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) <= pointField {
			continue
		}
		// Blanks are written in octal, in the form of Go's strings.
		if point, err := strconv.Unquote(`"` + strings.ReplaceAll(fields[pointField], `"`, `\"`) + `"`); err == nil && point == path {
			return true
		}
	}
	return false
}
