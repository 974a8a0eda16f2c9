package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/internal/keyfile"
)

// replicaEnv makes a registry of the test's own program: its value is the replicaConfig. So the registry's memory is
// told apart from that of the broker and of the flood.
const replicaEnv = "OMI_TEST_REPLICA"

type replicaConfig struct {
	NATS, Database     string
	Key                string // file of its signing key; startReplica makes it
	RotationsPerMinute int
	Ahead              int64  // seconds that its clock is ahead
	Profile            string // file for a CPU profile, with .heap for one of the memory; empty: none
}

func replicaMain(text string) int {
	if err := runReplica(text); err != nil {
		fmt.Fprintln(os.Stderr, "replica:", err)
		return 1
	}
	return 0
}

// runReplica serves until its standard input ends, as it does when the test dies.
func runReplica(text string) error {
	var cfg replicaConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	if cfg.Profile != "" {
		f, err := os.Create(cfg.Profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	key, err := keyfile.Read(cfg.Key)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	store, err := OpenStore(ctx, cfg.Database, log)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	nc, err := nats.Connect(cfg.NATS, nats.MaxReconnects(-1), nats.Timeout(patience))
	if err != nil {
		return err
	}
	defer nc.Close()
	r, err := New(Config{
		Policy: Policy{Origin: testOrigin, RotationsPerMinute: cfg.RotationsPerMinute}, Key: key, Store: store, Conn: nc, Log: log,
		Now: func() time.Time { return time.Now().Add(time.Duration(cfg.Ahead) * time.Second) },
	})
	if err != nil {
		return err
	}
	if err := r.Run(ctx); err != nil || cfg.Profile == "" {
		return err
	}
	return writeHeap(cfg.Profile + ".heap")
}

// writeHeap writes what is in memory after the work is done.
func writeHeap(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	runtime.GC()
	return pprof.WriteHeapProfile(f)
}

// child is a registry in a process of its own.
type child struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.Closer
	log   *bytes.Buffer // to be read once the process has ended
}

// startReplica starts a registry, until stop or the test's end.
func startReplica(t *testing.T, cfg replicaConfig) *child {
	t.Helper()
	cfg.Key = filepath.Join(t.TempDir(), "registry.pem")
	if err := keyfile.Create(cfg.Key, testKey); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := &child{t: t, cmd: exec.Command(os.Args[0]), log: &bytes.Buffer{}}
	p.cmd.Env = append(os.Environ(), replicaEnv+"="+string(text))
	p.cmd.Stderr = p.log
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin = stdin
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	return p
}

// stop ends the registry as a signal would, and fails the test if it does not end well.
func (p *child) stop() {
	if p.stdin == nil {
		return
	}
	_ = p.stdin.Close()
	p.stdin = nil
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("the registry's process: %v", err)
	}
	used := p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	p.t.Logf("the registry used the processor for %v, and logged:\n%s", used.Round(time.Millisecond), tail(p.log.Bytes(), 20))
}

func tail(text []byte, lines int) []byte {
	at := len(text)
	for range lines + 1 {
		if at = bytes.LastIndexByte(text[:at], '\n'); at < 0 {
			return text
		}
	}
	return text[at+1:]
}

// memory returns what Linux says about the process, in MiB: resident now, and the most since the last reset. Elsewhere
// it is unknown.
func (p *child) memory() (now, most float64) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0
	}
	return mebibytes(status, "VmRSS:"), mebibytes(status, "VmHWM:")
}

func mebibytes(status []byte, name string) float64 {
	_, rest, _ := bytes.Cut(status, []byte(name))
	line, _, _ := bytes.Cut(rest, []byte(" kB"))
	n, _ := strconv.ParseFloat(string(bytes.TrimSpace(line)), 64)
	return n / 1024
}

// resetMost lets memory's second figure begin anew.
func (p *child) resetMost() {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0)
}
