package schema_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"omiappreg.org/keyrotation/events"
)

// TestAsyncAPI: the document is YAML, every $ref leads somewhere, every schema of a message is
// used, and the addresses are the subjects of the contract.
func TestAsyncAPI(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("asyncapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var root map[string]any
	if err := yaml.Unmarshal(content, &root); err != nil {
		t.Fatal(err)
	}
	if root["asyncapi"] != "3.0.0" {
		t.Errorf("it is of version %v", root["asyncapi"])
	}
	files := map[string]bool{}
	for _, ref := range refsIn(root) {
		file, pointer, _ := strings.Cut(ref, "#")
		document := any(root)
		if file != "" {
			files[file] = true
			document = readJSON(t, file)
		}
		if !leads(document, pointer) {
			t.Errorf("%s leads nowhere", ref)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(compile(t))) {
		if file := "messages/" + name + ".json"; !files[file] && name != "defs" && name != "envelope" && name != "jwks" {
			t.Errorf("%s is not in the document", file)
		}
	}
	checkAddresses(t, root)
}

// refsIn returns the values of all members $ref.
func refsIn(v any) (refs []string) {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if ref, ok := member.(string); ok && name == "$ref" {
				refs = append(refs, ref)
			}
			refs = append(refs, refsIn(member)...)
		}
	case []any:
		for _, element := range v {
			refs = append(refs, refsIn(element)...)
		}
	}
	return refs
}

func readJSON(t testing.TB, file string) any {
	t.Helper()
	content, err := os.ReadFile(filepath.FromSlash(file))
	if err != nil {
		t.Error(err)
		return nil
	}
	var v any
	if err := json.Unmarshal(content, &v); err != nil {
		t.Errorf("%s: %v", file, err)
	}
	return v
}

// leads follows a JSON pointer.
func leads(v any, pointer string) bool {
	for name := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		if name == "" {
			continue
		}
		members, _ := v.(map[string]any)
		if v = members[name]; v == nil {
			return false
		}
	}
	return v != nil
}

func checkAddresses(t *testing.T, root map[string]any) {
	t.Helper()
	var got []string
	channels, _ := root["channels"].(map[string]any)
	for _, channel := range channels {
		members, _ := channel.(map[string]any)
		if address, ok := members["address"].(string); ok {
			got = append(got, strings.TrimSuffix(strings.TrimSuffix(address, ".{service_id}"), "{app_id}"))
		}
	}
	want := []string{
		events.RotationSubject, events.BindingSubject, events.RevocationSubject, events.InvalidationSubject, events.ReceiptSubject, events.NoticeSubject,
		events.AnswerSubject, events.LookupReceiptSubject, events.LookupServiceSubject, events.LookupHistorySubject,
		events.LookupKeySubject, events.LookupRegistrySubject,
		events.AuthVerifySubject, events.BillingAttributeSubject,
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the addresses are\n%q, the contract's subjects\n%q", got, want)
	}
}
