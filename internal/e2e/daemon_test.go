package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	patience = 2 * time.Minute // for what takes milliseconds on an idle machine
	pollEach = 10 * time.Millisecond
	asking   = 30 * time.Second // for the answer to one HTTP request
)

// daemon is a program that runs in the background, and that can be killed and started again.
type daemon struct {
	name    string
	command []string // a program of binaries, or its whole path; and its arguments
	env     []string // and nothing of the test's own environment
	folder  string   // its working directory, with NAME.out and NAME.log for what it says

	cmd     *exec.Cmd
	ended   chan struct{}
	ending  error // of cmd, once ended is closed
	outFrom int64 // where in its files the present run begins
	logFrom int64
}

func (d *daemon) out() string { return filepath.Join(d.folder, d.name+".out") }
func (d *daemon) log() string { return filepath.Join(d.folder, d.name+".log") }

// start starts it, for the first time or again.
func (d *daemon) start() error {
	out, outFrom, err := appendTo(d.out())
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }() // the process has a descriptor of its own
	log, logFrom, err := appendTo(d.log())
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	program := d.command[0]
	if !filepath.IsAbs(program) {
		program = filepath.Join(binaries, program)
	}
	cmd := exec.Command(program, d.command[1:]...)
	cmd.Args[0] = d.command[0] // as a shell that finds it on PATH
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = d.folder, append([]string{}, d.env...), out, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	ended := make(chan struct{})
	d.cmd, d.ended, d.outFrom, d.logFrom = cmd, ended, outFrom, logFrom
	go func() {
		defer close(ended)
		d.ending = cmd.Wait()
	}()
	return nil
}

func appendTo(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, 0, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	return f, size, err
}

// kill9 ends it as a power cut of its own would: at once, wherever it is.
func (d *daemon) kill9() error {
	if err := d.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("kill %s, which ended before: %w", d.name, err)
	}
	<-d.ended
	return nil
}

// interrupt is Ctrl-C, after which it must end by itself and well.
func (d *daemon) interrupt() error { return d.interrupted(0) }

// interrupted is Ctrl-C, after which it must end by itself, with this exit code.
func (d *daemon) interrupted(code int) error { return d.ends(os.Interrupt, code) }

// ends sends it a signal that it is to end by, with this exit code.
func (d *daemon) ends(by os.Signal, code int) error {
	if err := d.cmd.Process.Signal(by); err != nil {
		return fmt.Errorf("send %v to %s, which ended before: %w", by, d.name, err)
	}
	select {
	case <-d.ended:
	case <-time.After(patience):
		return fmt.Errorf("%s has not stopped %v after %v", d.name, patience, by)
	}
	if got := d.cmd.ProcessState.ExitCode(); got != code {
		return fmt.Errorf("%s got %v and ended with code %d instead of %d", d.name, by, got, code)
	}
	return nil
}

// stop is for the end of a test that has failed.
func (d *daemon) stop() {
	if d.cmd != nil {
		_ = d.cmd.Process.Kill() // it may have ended
		<-d.ended
	}
}

// running says whether the present run has ended.
func (d *daemon) running() error {
	select {
	case <-d.ended:
		return fatal{fmt.Errorf("%s has ended: %w", d.name, d.ending)}
	default:
		return nil
	}
}

// servesHTTP is how a process says where it listens: in its log, or, omi dev, to the person who
// started it.
var servesHTTP = regexp.MustCompile(`"msg":"serving HTTP","addr":"([^"]+)"|(?m)^HTTP +http://(\S+)|"http_url": "http://([^"]+)"`)

// addr returns where the present run serves HTTP.
func (d *daemon) addr() (string, error) {
	for file, from := range map[string]int64{d.log(): d.logFrom, d.out(): d.outFrom} {
		content, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if m := servesHTTP.FindSubmatch(content[from:]); m != nil {
			return string(m[1]) + string(m[2]) + string(m[3]), nil
		}
	}
	return "", errors.New(d.name + " has not said yet where it serves HTTP")
}

// ready asks whether the present run is ready. One that has ended will never be.
func (d *daemon) ready() error { return d.readyWith("") }

// readyWith asks whether it says so, and this too.
func (d *daemon) readyWith(text string) error {
	if err := d.running(); err != nil {
		return err
	}
	response, err := d.do(http.MethodGet, "/readyz", "")
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	body, _ := io.ReadAll(response.Body) // for the message only
	if response.StatusCode != http.StatusOK || !strings.Contains(string(body), text) {
		return fmt.Errorf("%s: %s: %s", d.name, response.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// do sends a request. Whoever asked closes the answer's body.
func (d *daemon) do(method, path, body string) (*http.Response, error) {
	addr, err := d.addr()
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequest(method, "http://"+addr+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	client := http.Client{Timeout: asking}
	return client.Do(request)
}

// fatal is an error that does not pass by waiting.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// eventually waits until condition returns nil. It is for scripts, which have their own way to
// fail; a test uses testenv.Eventually.
func eventually(condition func() error) error {
	deadline := time.After(patience)
	tick := time.NewTicker(pollEach)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil || errors.As(err, new(fatal)) {
			return err
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("not within %v: %w", patience, err)
		}
	}
}
