//go:build unix

package localserver

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// StartPgBouncer starts a pooler in transaction mode in front of a server, with the given number of
// sessions for all clients of a user. The users are those of the URLs, all of one server. The
// pooler's own URL is for the first of them.
func StartPgBouncer(sessions int, servers ...*url.URL) (*Server, error) {
	program, err := pgBouncer()
	if err != nil {
		return nil, err
	}
	as, err := unprivileged()
	if err != nil {
		return nil, err
	}
	addrs, err := FreeAddrs(1)
	if err != nil {
		return nil, err
	}
	folder, err := ownFolder("", "omi-pgbouncer-", as)
	if err != nil {
		return nil, err
	}
	var users strings.Builder
	for _, s := range servers {
		password, _ := s.User.Password()
		fmt.Fprintf(&users, "%q %q\n", s.User.Username(), password)
	}
	host, port, err := net.SplitHostPort(addrs[0])
	if err != nil {
		return nil, fmt.Errorf("read a free address: %w", err)
	}
	settings := fmt.Sprintf(`[databases]
* = host=%s port=%s
[pgbouncer]
listen_addr = %s
listen_port = %s
unix_socket_dir =
auth_type = plain
auth_file = %s
pool_mode = transaction
default_pool_size = %d
max_client_conn = 500
`, servers[0].Hostname(), servers[0].Port(), host, port, filepath.Join(folder, "users"), sessions)
	for name, text := range map[string]string{"users": users.String(), "pgbouncer.ini": settings} {
		path := filepath.Join(folder, name)
		err := os.WriteFile(path, []byte(text), 0o600)
		if err == nil && as != nil {
			err = os.Chown(path, int(as.Uid), int(as.Gid))
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("write the pooler's settings: %w", err), os.RemoveAll(folder))
		}
	}
	address := *servers[0]
	address.Host = addrs[0]
	server, err := launch(&address, folder, "TERM", as, []string{program, filepath.Join(folder, "pgbouncer.ini")})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return server, nil
}

// pgBouncer finds the program on PATH, or where Debian keeps it.
func pgBouncer() (string, error) {
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("the program pgbouncer is not on PATH; install it, as by apt install pgbouncer")
}
