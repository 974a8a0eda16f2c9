package keyfile_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mountsEnv is a variable that names the test which runs in its own process.
const mountsEnv = "OMI_TEST_MOUNTS"

// ownMounts runs the calling test once more, alone, in a process that shares its mounts with no
// other. In that process it returns true. If this user may not have such a process, the log says
// so.
func ownMounts(t *testing.T) bool {
	t.Helper()
	if os.Getenv(mountsEnv) == t.Name() {
		return true
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), mountsEnv+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
	}
	out, err := cmd.CombinedOutput()
	switch {
	case errors.Is(err, fs.ErrPermission):
		t.Logf("not run: this user may have no mounts of its own: %v", err)
	case err != nil:
		t.Errorf("with mounts of its own: %v\n%s", err, out)
	}
	return false
}

// bindMount mounts a file or a folder over another one, in a process of [ownMounts].
func bindMount(t *testing.T, from, to string, readOnly bool) {
	t.Helper()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(to, unix.MNT_DETACH) })
	if readOnly {
		if err := unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// asUser calls do as another user in one group. If this process is not root's, it returns false and
// does nothing.
func asUser(t *testing.T, uid, gid int, do func()) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	done := make(chan error)
	go func() {
		defer close(done)
		// The thread is never unlocked, so it ends with this goroutine. The system calls below are
		// for this thread only.
		runtime.LockOSThread()
		for _, call := range [][4]uintptr{
			{unix.SYS_SETGROUPS, 0, 0, 0},
			{unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
				done <- errno
				return
			}
		}
		do()
	}()
	if err := <-done; err != nil {
		t.Fatalf("become another user: %v", err)
	}
	return true
}
