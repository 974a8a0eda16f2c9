//go:build unix

package testenv

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

// startPostgres makes and starts a PostgreSQL server that keeps nothing: speed over durability.
func startPostgres() (*localServer, error) {
	bin, err := postgresPrograms()
	if err != nil {
		return nil, err
	}
	as, err := unprivileged()
	if err != nil {
		return nil, err
	}
	folder, err := ownFolder("omi-test-postgres-", as)
	if err != nil {
		return nil, err
	}
	server, err := startPostgresIn(bin, folder, as)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return server, nil
}

func startPostgresIn(bin, folder string, as *syscall.Credential) (*localServer, error) {
	password := rand.Text()
	if err := initPostgres(bin, folder, password, as); err != nil {
		return nil, err
	}
	return launchPostgres(bin, folder, password, as, "synchronous_commit=off")
}

// launchPostgres starts a server on the data that initPostgres made, at an address where nobody listens yet.
func launchPostgres(bin, folder, password string, as *syscall.Credential, settings ...string) (*localServer, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("read a free address: %w", err)
	}
	command := []string{filepath.Join(bin, "postgres"), "-D", postgresData(folder)}
	for _, setting := range append([]string{
		"listen_addresses=" + host, "port=" + port, "unix_socket_directories=", "max_connections=300",
		"fsync=off", "full_page_writes=off", "shared_buffers=64MB",
	}, settings...) {
		command = append(command, "-c", setting)
	}
	address := &url.URL{Scheme: "postgres", User: url.UserPassword("postgres", password), Host: addr, Path: "/postgres"}
	return launch(address, folder, "QUIT", as, command) // QUIT: at once, its data goes anyway
}

func postgresData(folder string) string { return filepath.Join(folder, "data") }

// initPostgres makes the server's data. Its users need a password, so that tests see refused ones.
func initPostgres(bin, folder, password string, as *syscall.Credential) error {
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
		"-D", postgresData(folder), "-U", "postgres", "--pwfile", secret,
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
