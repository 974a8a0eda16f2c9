package publicapi_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	// What the go command reads for these tests: go test answers from its cache until it changes.
	_ "omiappreg.org/keyrotation/authsub"
	_ "omiappreg.org/keyrotation/billingsub"
	_ "omiappreg.org/keyrotation/client"
	_ "omiappreg.org/keyrotation/registry"
)

// maxModules is how many modules a Domain Service lists that imports client.
const maxModules = 75

// TestDomainService: a Domain Service in another module compiles, and gets few modules along.
func TestDomainService(t *testing.T) {
	t.Parallel()
	folder := newModule(t, "domain")
	runGo(t, folder, "vet", ".")
	if modules := strings.Fields(runGo(t, folder, "list", "-m", "-f", "{{.Path}}", "all")); len(modules) > maxModules {
		t.Errorf("it lists %d modules, more than %d:\n%s", len(modules), maxModules, strings.Join(modules, "\n"))
	}
	for path := range strings.Lines(runGo(t, folder, "list", "-deps", ".")) {
		for _, unwanted := range []string{"database/sql", "github.com/prometheus/", "github.com/nats-io/nats-server/", module + "/registry"} {
			if strings.HasPrefix(path, unwanted) {
				t.Errorf("it links %s", strings.TrimSpace(path))
			}
		}
	}
}

// TestCoreServices: core services in another module compile, with all the other public packages.
func TestCoreServices(t *testing.T) {
	t.Parallel()
	runGo(t, newModule(t, "core"), "vet", ".")
}

// TestEventsNeedNoNATSClient: a program that only parses events, or keeps keyrings, links no NATS
// client.
func TestEventsNeedNoNATSClient(t *testing.T) {
	t.Parallel()
	for path := range strings.Lines(runGo(t, ".", "list", "-deps", module+"/events", module+"/keyring")) {
		if strings.Contains(path, "nats") {
			t.Errorf("%s is among what events and keyring import", strings.TrimSpace(path))
		}
	}
}

// newModule makes a module of a folder of testdata that requires this one as it is here.
func newModule(t *testing.T, name string) (folder string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	folder = t.TempDir()
	if err := os.CopyFS(folder, os.DirFS(filepath.Join("testdata", name))); err != nil {
		t.Fatal(err)
	}
	// the versions of another module's dependencies are this one's, so their checksums are too
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("module example.org/%s\n\ngo 1.26.0\n\nrequire %s v0.0.0\n\nreplace %[2]s => %s\n", name, module, root)
	for file, content := range map[string]string{"go.mod": text, "go.sum": string(sums)} {
		if err := os.WriteFile(filepath.Join(folder, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// runGo runs the go command, which completes the go.mod of a new module.
func runGo(t *testing.T, folder string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if folder != "." {
		cmd.Env = append(cmd.Env, "GOFLAGS=-mod=mod")
	}
	var failed strings.Builder
	cmd.Stderr = &failed
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, &failed)
	}
	return string(out)
}
