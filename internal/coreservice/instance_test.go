package coreservice_test

import (
	"strings"
	"testing"

	"omiappreg.org/keyrotation/internal/coreservice"
)

// TestInstanceNames: the name of any host can be that of an instance.
func TestInstanceNames(t *testing.T) {
	t.Parallel()
	host, err := coreservice.HostInstance()
	if err != nil {
		t.Fatal(err)
	}
	for name, good := range map[string]bool{
		host: true, "web-1": true, "Web_1": true, strings.Repeat("a", 128): true,
		"": false, "web.1": false, "a b": false, "*": false, ">": false, "é": false, "a/b": false, strings.Repeat("a", 129): false,
	} {
		if err := coreservice.CheckInstance(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}
