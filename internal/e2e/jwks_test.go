package e2e_test

import (
	"bufio"
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/keyformat"
	"omiappreg.org/keyrotation/internal/testenv"
)

// The registry's settings in this test: a set may be kept for 6 s in all, so each of the two that
// keep it may for 2 s.
const (
	jwksGrace  = "20s"
	jwksMaxAge = "6s"
	jwksEach   = "2"
	jwksSigned = 50 * time.Millisecond // between two tokens
)

// TestJWKSConsumers: a service rotates its key, and those who verify its tokens by its JWK Set
// refuse none: jose, which keeps the set itself, at the registry and behind a cache, nginx, that
// obeys Cache-Control.
func TestJWKSConsumers(t *testing.T) {
	t.Parallel()
	nginx, err := findNginx()
	if err != nil {
		testenv.Missing(t, testenv.Nginx, err)
	}
	example := filepath.Join("..", "..", "examples", "jwks")
	if _, err := os.Stat(filepath.Join(example, "node_modules", "jose")); err != nil {
		testenv.Missing(t, testenv.Jose, fmt.Errorf("run `npm ci` in examples/jwks: %w", err))
	}
	broker := testenv.NewBroker(t)
	nc := testenv.Connect(t, broker.URL())
	d := prepare(t, testenv.Database(t, testenv.SQLite), nc)
	env := []string{"OMI_NATS_URL=" + broker.URL(), "OMI_HTTP_ADDR=127.0.0.1:0", "OMI_TRUST=" + d.registryKey().String()}
	d.registry = &daemon{name: "registry", folder: d.folder, env: env, command: []string{
		"omi-registry", "--signing-key", "registry.pem", "--database-url", d.url, "--grace-period", jwksGrace, "--jwks-max-age", jwksMaxAge,
	}}
	d.auth = &daemon{name: "auth", folder: d.folder, env: env, command: []string{"omi-authsub"}}
	d.processes = []*daemon{d.registry, d.auth}
	t.Cleanup(d.close)
	for _, p := range d.processes {
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
	}
	d.awaitReady()
	c := openSigner(t, d, client.Config{Conn: nc, JWKS: true})

	registry, err := d.registry.addr()
	if err != nil {
		t.Fatal(err)
	}
	cache := startNginx(t, nginx, registry)
	const set = "/v1/apps/org.example.shop/services/cms/jwks.json"
	verifiers := map[string]*joseProcess{
		"at the registry":  startJose(t, example, "http://"+registry+set),
		"behind the cache": startJose(t, example, "http://"+cache.addr+set),
	}
	go keepAsking(t.Context(), "http://"+cache.addr+set) // the cache always has a set
	for range 3 {
		rotateAndVerify(t, c, verifiers)
	}
	if log := cache.log(t); !strings.Contains(log, "HIT") || !strings.Contains(log, "REVALIDATED") {
		t.Errorf("the cache has kept nothing, or never asked by a tag: %s", log)
	}
}

// rotateAndVerify rotates the key while tokens are signed and verified all the time, and returns
// after some of the new key's.
func rotateAndVerify(t *testing.T, c *client.Client, verifiers map[string]*joseProcess) {
	t.Helper()
	_, before := c.Signer().Key()
	settled := make(chan error, 1)
	go func() {
		_, err := c.Rotate(t.Context())
		settled <- errors.Join(err, c.Settle(t.Context()))
	}()
	deadline, pace := time.Now().Add(patience), time.NewTicker(jwksSigned)
	defer pace.Stop()
	for signed, fresh := 0, 0; fresh < 100; signed++ {
		token, by := newToken(t, c, []string{"EdDSA", "Ed25519"}[signed%2])
		for where, v := range verifiers {
			if answer := v.verify(t, token); answer != "ok "+by {
				t.Fatalf("token %d, %s, is refused: %s", signed, where, answer)
			}
		}
		if _, now := c.Signer().Key(); now != before {
			fresh++
		}
		if time.Now().After(deadline) {
			t.Fatal("the new key does not sign")
		}
		<-pace.C
	}
	if err := <-settled; err != nil {
		t.Fatal(err)
	}
}

// openSigner binds a service, and opens its client.
func openSigner(t *testing.T, d *deployment, cfg client.Config) *client.Client {
	t.Helper()
	if err := keyfile.Create(filepath.Join(d.folder, "master.pem"), d.master); err != nil {
		t.Fatal(err)
	}
	bind := exec.CommandContext(t.Context(), filepath.Join(binaries, "omi"), "bind", "--app-id", d.app.String(), "--service-id", "cms",
		"--master-key", "master.pem", "--key", "keys/")
	bind.Dir, bind.Env = d.folder, d.registry.env
	if out, err := bind.CombinedOutput(); err != nil {
		t.Fatalf("omi bind: %v: %s", err, out)
	}
	keys, err := client.OpenFolder(filepath.Join(d.folder, "keys"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = keys.Close() })
	if cfg.Target, err = events.ParseTarget(d.app.String() + ".cms"); err != nil {
		t.Fatal(err)
	}
	cfg.Store, cfg.Trust = keys, d.trust
	c, err := client.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// newToken signs a JWT, and returns it and the kid of its key.
func newToken(t *testing.T, c *client.Client, algorithm string) (token, kid string) {
	t.Helper()
	for {
		_, key := c.Signer().Key()
		kid = keyformat.Thumbprint(key)
		text := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
		signed := text(fmt.Sprintf(`{"alg":"%s","kid":"%s"}`, algorithm, kid)) + "." + text(`{"sub":"article-77"}`)
		signature, err := c.Signer().Sign(nil, []byte(signed), crypto.Hash(0))
		if err != nil {
			t.Fatal(err)
		}
		if _, now := c.Signer().Key(); now == key { // and not one that took its place in between
			return signed + "." + base64.RawURLEncoding.EncodeToString(signature), kid
		}
	}
}

// joseProcess is a consumer: examples/jwks.
type joseProcess struct {
	in  io.Writer
	out *bufio.Reader
}

func startJose(t *testing.T, folder, url string) *joseProcess {
	t.Helper()
	command := exec.CommandContext(t.Context(), "node", "verify.js", url, jwksEach)
	command.Dir, command.Stderr = folder, t.Output()
	in, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = command.Wait() }) // it is killed as the test ends
	return &joseProcess{in, bufio.NewReader(out)}
}

func (j *joseProcess) verify(t *testing.T, token string) string {
	t.Helper()
	if _, err := io.WriteString(j.in, token+"\n"); err != nil {
		t.Fatal(err)
	}
	line, err := j.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// keepAsking fetches a URL again and again until ctx ends.
func keepAsking(ctx context.Context, url string) {
	pace := time.NewTicker(jwksSigned)
	defer pace.Stop()
	for ctx.Err() == nil {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			_, _ = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
		}
		<-pace.C
	}
}

// nginxProcess is a cache in front of the registry.
type nginxProcess struct {
	folder string
	addr   string
}

func findNginx() (string, error) {
	path, err := exec.LookPath("nginx")
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/nginx") // Debian's, which is not on PATH
	}
	return path, err
}

// startNginx starts an ordinary process that keeps all that it has in a folder of the test's.
func startNginx(t *testing.T, nginx, behind string) *nginxProcess {
	t.Helper()
	p := &nginxProcess{folder: t.TempDir(), addr: testenv.FreeAddrs(t, 1)[0]}
	built, err := exec.CommandContext(t.Context(), nginx, "-V").CombinedOutput()
	if err != nil {
		t.Fatalf("nginx -V: %v: %s", err, built)
	}
	temporary := []string{"client_body_temp_path body;", "proxy_temp_path proxy;"}
	for _, module := range []string{"fastcgi", "uwsgi", "scgi"} {
		if !strings.Contains(string(built), "--without-http_"+module+"_module") {
			temporary = append(temporary, module+"_temp_path "+module+";")
		}
	}
	config := fmt.Sprintf(`daemon off; master_process off; pid nginx.pid; error_log error.log;
events {}
http {
  %s
  log_format kept '$upstream_cache_status';
  access_log access.log kept;
  proxy_cache_path cache keys_zone=keys:1m;
  server {
    listen %s;
    location / {
      proxy_pass http://%s;
      proxy_cache keys;
      proxy_cache_revalidate on;
      proxy_cache_lock on;
    }
  }
}
`, strings.Join(temporary, " "), p.addr, behind)
	if err := os.WriteFile(filepath.Join(p.folder, "nginx.conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), nginx, "-p", p.folder, "-e", "error.log", "-c", "nginx.conf")
	command.Stderr = t.Output()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = command.Wait() }) // it is killed as the test ends
	testenv.Eventually(t, patience, "nginx answers", func() error {
		response, err := http.Get("http://" + p.addr + "/v1/registry")
		if err != nil {
			return err
		}
		return response.Body.Close()
	})
	return p
}

func (p *nginxProcess) log(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(p.folder, "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
