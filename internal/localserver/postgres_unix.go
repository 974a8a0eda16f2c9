//go:build unix

package localserver

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// StartPostgres makes and starts a PostgreSQL server, as an unprivileged user where this process is root.
func StartPostgres(cfg PostgresConfig) (*Server, error) {
	bin, err := postgresPrograms()
	if err != nil {
		return nil, err
	}
	as, err := unprivileged()
	if err != nil {
		return nil, err
	}
	folder, err := ownFolder(cfg.Parent, "omi-postgres-", as)
	if err != nil {
		return nil, err
	}
	server, err := startPostgresIn(bin, folder, cfg.Durable, as)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return server, nil
}

func startPostgresIn(bin, folder string, durable bool, as *syscall.Credential) (*Server, error) {
	password := rand.Text()
	data := filepath.Join(folder, "data")
	if err := initPostgres(bin, folder, data, password, as); err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("read a free address: %w", err)
	}
	command := []string{filepath.Join(bin, "postgres"), "-D", data}
	settings := []string{"listen_addresses=" + host, "port=" + port, "unix_socket_directories=", "max_connections=300"}
	if !durable {
		settings = append(settings, "fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=64MB")
	}
	for _, setting := range settings {
		command = append(command, "-c", setting)
	}
	address := &url.URL{Scheme: "postgres", User: url.UserPassword("postgres", password), Host: addr, Path: "/postgres"}
	return launch(address, folder, "QUIT", as, command) // QUIT: at once, its data goes anyway
}

// initPostgres makes the server's data. Its users need a password, as in life: whoever has none, or a wrong one, is refused.
func initPostgres(bin, folder, data, password string, as *syscall.Credential) error {
	secret := filepath.Join(folder, "password")
	if err := os.WriteFile(secret, []byte(password), 0o600); err != nil {
		return fmt.Errorf("write the password: %w", err)
	}
	if as != nil {
		if err := os.Chown(secret, int(as.Uid), int(as.Gid)); err != nil {
			return fmt.Errorf("give the password away: %w", err)
		}
	}
	args := []string{
		"-D", data, "-U", "postgres", "--pwfile", secret,
		"-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions",
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), args...) //nolint:gosec // a program that this package found
	initdb.Dir = folder
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return nil
}

// postgresPrograms finds the folder of postgres and initdb: on PATH, or the newest where Debian keeps them.
func postgresPrograms() (string, error) {
	if postgres, err := exec.LookPath("postgres"); err == nil {
		if _, err := exec.LookPath("initdb"); err == nil {
			return filepath.Dir(postgres), nil
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // its pattern is well-formed
	if len(found) == 0 {
		return "", errors.New("its programs postgres and initdb are not on PATH; install it, as by apt install postgresql")
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return majorVersion(a) - majorVersion(b) })
	return filepath.Dir(newest), nil
}

// majorVersion is the 15 of /usr/lib/postgresql/15/bin/initdb.
func majorVersion(initdb string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(initdb)))) // an odd name comes last
	return n
}
