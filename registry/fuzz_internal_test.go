package registry

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/events"
)

// FuzzApps: a file of apps is refused in one line that names it, or every entry is whole, and written again the same.
func FuzzApps(f *testing.F) {
	id, err := events.ParseAppID("org.omiappreg.alice.shop.7f8a9d")
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal([]App{{id, events.GenerateSigningKey().Public()}})
	if err != nil {
		f.Fatal(err)
	}
	for _, content := range []string{"", "[]", "null", string(good), "[{}]", `[{"app_id":"x"}]`, `[null]`, `{"app_id":1}`, `[{"App_ID":""}]`} {
		f.Add([]byte(content))
	}
	path := filepath.Join(f.TempDir(), "apps.json")
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		apps, err := ReadApps(path)
		if err != nil {
			if !strings.HasPrefix(err.Error(), path) || strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%q", err)
			}
			return
		}
		written, err := json.Marshal(apps)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, written, 0o600); err != nil {
			t.Fatal(err)
		}
		if again, err := ReadApps(path); err != nil || !slices.Equal(apps, again) {
			t.Errorf("written as %s, it is %v: %v", written, again, err)
		}
	})
}
