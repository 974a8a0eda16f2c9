//go:build unix

package localserver

import (
	"bytes"
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
	"time"
)

// StartPostgres creates and starts a PostgreSQL server. If this process is root, the server runs as
// an unprivileged user.
func StartPostgres(cfg PostgresConfig) (*Server, error) {
	p, err := NewPostgres(cfg)
	if err != nil {
		return nil, err
	}
	if err := p.Start(); err != nil {
		return nil, errors.Join(err, p.Remove())
	}
	return p.Server, nil
}

// Postgres is a PostgreSQL server that can be stopped, or crashed, and started again on the same
// data.
type Postgres struct {
	*Server  // the last one that was started
	cfg      PostgresConfig
	bin      string
	folder   string
	password string
	as       *syscall.Credential
}

// NewPostgres creates the data of a server that is not started yet.
func NewPostgres(cfg PostgresConfig) (*Postgres, error) {
	p := &Postgres{cfg: cfg, password: rand.Text()}
	var err error
	if p.bin, err = PostgresPrograms(); err != nil {
		return nil, err
	}
	if p.as, err = unprivileged(); err != nil {
		return nil, err
	}
	if p.folder, err = ownFolder(cfg.Parent, "omi-postgres-", p.as); err != nil {
		return nil, err
	}
	if err := initPostgres(p.bin, p.folder, p.password, p.as); err != nil {
		return nil, errors.Join(err, p.Remove())
	}
	return p, nil
}

// Remove removes its files, if the end of the server has not done so.
func (p *Postgres) Remove() error { return os.RemoveAll(p.folder) }

// Folder returns the folder of its files.
func (p *Postgres) Folder() string { return p.folder }

// Start starts it, at an address that no process uses yet.
func (p *Postgres) Start() error {
	addrs, err := FreeAddrs(1)
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(addrs[0])
	if err != nil {
		return fmt.Errorf("read a free address: %w", err)
	}
	command := []string{filepath.Join(p.bin, "postgres"), "-D", postgresData(p.folder)}
	settings := []string{"listen_addresses=" + host, "port=" + port, "unix_socket_directories=", "max_connections=300"}
	if !p.cfg.Durable {
		settings = append(settings, "fsync=off", "full_page_writes=off", "shared_buffers=64MB")
	}
	if !p.cfg.Durable && !p.cfg.Restarts {
		settings = append(settings, "synchronous_commit=off")
	}
	for _, setting := range settings {
		command = append(command, "-c", setting)
	}
	address := &url.URL{Scheme: "postgres", User: url.UserPassword("postgres", p.password), Host: addrs[0], Path: "/postgres"}
	// QUIT: at once, its data is removed anyway
	p.Server, err = launch(address, p.folder, "QUIT", p.as, command)
	return err
}

// Halt stops it as an operator does: connections are dropped, and their transactions are rolled
// back. Its data stays.
func (p *Postgres) Halt() error { return p.end(syscall.SIGINT) }

// Crash stops it at once: the next start begins with the recovery of its log.
func (p *Postgres) Crash() error { return p.end(syscall.SIGQUIT) }

const stopTimeout = time.Minute

// end signals the server and not its guard, which would remove the data.
func (p *Postgres) end(signal syscall.Signal) error {
	text, err := os.ReadFile(filepath.Join(postgresData(p.folder), "postmaster.pid"))
	if err != nil {
		return fmt.Errorf("find the server's process: %w", err)
	}
	first, _, _ := bytes.Cut(text, []byte("\n"))
	pid, err := strconv.Atoi(string(first))
	if err != nil {
		return fmt.Errorf("find the server's process: %w", err)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("signal the server: %w", err)
	}
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		return fmt.Errorf("the server has not stopped %v after %s", stopTimeout, signal)
	}
	_ = p.life.Close()
	return nil
}

func postgresData(folder string) string { return filepath.Join(folder, "data") }

// initPostgres creates the server's data. As in production, its users need a password: a user with
// none or a wrong one is refused.
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
	initdb := exec.Command(filepath.Join(bin, "initdb"), args...) //nolint:gosec // found here
	initdb.Dir = folder
	initdb.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	return nil
}

// PostgresPrograms returns the folder of postgres and initdb: on PATH, or the newest one where
// Debian keeps them.
func PostgresPrograms() (string, error) {
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

// majorVersion returns the 15 of /usr/lib/postgresql/15/bin/initdb.
func majorVersion(initdb string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(initdb)))) // 0 for an odd name
	return n
}
