package pin

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
)

// FuzzPins: a file of pins is refused as the user's to fix, or its pins are whole and survive a change of the file.
func FuzzPins(f *testing.F) {
	target, err := events.ParseTarget("org.omiappreg.alice.shop.7f8a9d.cms-article-77")
	if err != nil {
		f.Fatal(err)
	}
	key := events.GenerateSigningKey().Public()
	good, err := json.Marshal(document{version, []pin{
		{target.App, target.Service, "omiappreg.org", []events.PublicKey{key}, 3, key, 1_705_412_600},
	}})
	if err != nil {
		f.Fatal(err)
	}
	for _, content := range []string{"", "{}", "null", string(good), `{"version":1}`, `{"version":1,"pins":[{}]}`, `{"version":1,"pins":[null]}`} {
		f.Add([]byte(content))
	}
	file := pinFile{filepath.Join(f.TempDir(), "pins.json")}
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(file.path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		pins, err := file.load()
		if err != nil {
			if process.ExitCode(err) != process.ExitUsage {
				t.Errorf("exit code %d: %v", process.ExitCode(err), err)
			}
			return
		}
		if err := file.update(func(pins []pin) ([]pin, error) { return pins, nil }); err != nil {
			t.Fatalf("they can't be written: %v", err)
		}
		again, err := file.load()
		if err != nil {
			t.Fatalf("written, they can't be read: %v", err)
		}
		byTarget := cmpopts.SortSlices(func(a, b pin) bool { return a.target().String() < b.target().String() })
		ids := cmp.Comparer(func(a, b events.AppID) bool { return a == b })
		services := cmp.Comparer(func(a, b events.ServiceID) bool { return a == b })
		keys := cmp.Comparer(func(a, b events.PublicKey) bool { return a == b })
		if diff := cmp.Diff(pins, again, byTarget, ids, services, keys, cmp.AllowUnexported(pin{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("written, they are others:\n%s", diff)
		}
		for _, p := range again {
			if p.AppID.IsZero() || p.ServiceID.IsZero() || p.Origin == "" || len(p.RegistryPublicKeys) == 0 || p.Sequence < 1 {
				t.Errorf("a pin that lacks something: %+v", p)
			}
		}
	})
}
