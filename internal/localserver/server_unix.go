//go:build unix

package localserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// guard is the shell script between this process and its server. A reader waits on a pipe whose
// other end only this process holds, so the read ends when this process ends, in whatever way: by
// Stop, a panic, a timeout or kill -9. Then the script stops the server (with the signal $1) and
// removes the folder ($2). The rest is the server's command.
//
// The script needs only pipes of the operating system, and leaves no files behind. A parent-death
// signal (Linux only, and bound to a thread) would.
const guard = `
signal=$1 folder=$2
shift 2
exec 3<&0
"$@" >"$folder/log" 2>&1 </dev/null 3<&- &
server=$!
{ read -r _; : >"$folder/stop"; kill -s "$signal" "$server"; } <&3 2>/dev/null &
reader=$!
wait "$server"
if [ -e "$folder/stop" ]; then rm -rf "$folder"; else kill "$reader"; fi
`

const startTimeout = time.Minute

// Server is a database server that this process has started.
type Server struct {
	url   *url.URL
	guard *exec.Cmd
	life  io.Closer
	done  chan struct{} // closed when the guard has ended
}

// launch starts a server below a guard, and waits until it answers at url.
func launch(url *url.URL, folder, signal string, as *syscall.Credential, command []string) (*Server, error) {
	args := append([]string{"-c", guard, "guard", signal, folder}, command...)
	cmd := exec.Command("sh", args...) //nolint:gosec // the programs that this package found
	cmd.Dir = folder
	// The guard has a process group of its own: Ctrl-C is for the process that started it, and the
	// guard sees that process end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: as}
	life, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", command[0], err), life.Close())
	}
	s := &Server{url: url, guard: cmd, life: life, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		_ = cmd.Wait()
	}()
	if err := s.await(); err != nil {
		log, _ := os.ReadFile(filepath.Join(folder, "log"))
		s.Stop()
		return nil, fmt.Errorf("start %s: %w\n%s", command[0], err, log)
	}
	return s, nil
}

func (s *Server) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := pgx.Connect(ctx, s.url.String())
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-tick.C:
		case <-s.done:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return err
		}
	}
}

// URL returns its superuser's URL, with the password.
func (s *Server) URL() *url.URL { return s.url }

// PID returns the process above all processes of the server.
func (s *Server) PID() int { return s.guard.Process.Pid }

// Stop ends the server, and returns when its files are removed.
func (s *Server) Stop() {
	_ = s.life.Close()
	<-s.done
}

// ownFolder creates a temporary folder for a server, owned by the user that it will run as.
func ownFolder(parent, pattern string, as *syscall.Credential) (string, error) {
	folder, err := os.MkdirTemp(parent, pattern)
	if err != nil {
		return "", fmt.Errorf("make a folder: %w", err)
	}
	if as != nil {
		if err := os.Chown(folder, int(as.Uid), int(as.Gid)); err != nil {
			return "", errors.Join(fmt.Errorf("give a folder away: %w", err), os.RemoveAll(folder))
		}
	}
	return folder, nil
}

// unprivileged returns the user for a server that refuses to run as root. Nil means the user of
// this process.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // exec.Cmd takes nil for "the same"
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("we are root, and there is no user postgres or nobody to run it as")
}
