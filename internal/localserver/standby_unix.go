//go:build unix

package localserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// NewStandby creates the data of another server, which is not started yet and will follow this
// running one.
func (p *Postgres) NewStandby() (*Postgres, error) {
	// PATH may have links to only two of its programs.
	initdb, err := filepath.EvalSymlinks(filepath.Join(p.bin, "initdb"))
	if err != nil {
		return nil, fmt.Errorf("find PostgreSQL's programs: %w", err)
	}
	s := &Postgres{cfg: p.cfg, bin: p.bin, password: p.password, as: p.as}
	if s.folder, err = ownFolder(p.cfg.Parent, "omi-postgres-", p.as); err != nil {
		return nil, err
	}
	backup := exec.Command(filepath.Join(filepath.Dir(initdb), "pg_basebackup"), //nolint:gosec // as initdb
		"-D", postgresData(s.folder), "-d", p.URL().String(), "-c", "fast", "-X", "stream", "--no-sync")
	backup.Dir = s.folder
	backup.SysProcAttr = &syscall.SysProcAttr{Credential: p.as}
	if out, err := backup.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("pg_basebackup: %w\n%s", err, out), s.Remove())
	}
	if err := s.Follow(p); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// Follow makes a server that is stopped a standby of another one at its next start.
func (p *Postgres) Follow(primary *Postgres) error {
	conninfo := fmt.Sprintf("\nprimary_conninfo = 'host=%s port=%s user=postgres password=%s'\n",
		primary.URL().Hostname(), primary.URL().Port(), primary.password)
	for name, text := range map[string]string{"postgresql.auto.conf": conninfo, "standby.signal": ""} {
		path := filepath.Join(postgresData(p.folder), name)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("make a standby: %w", err)
		}
		_, err = f.WriteString(text)
		if err = errors.Join(err, f.Close()); err == nil && p.as != nil {
			err = os.Chown(path, int(p.as.Uid), int(p.as.Gid))
		}
		if err != nil {
			return fmt.Errorf("make a standby: %w", err)
		}
	}
	return nil
}
