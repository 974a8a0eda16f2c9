package streams_test

import (
	"os/exec"
	"strings"
	"testing"
)

// TestEventsNeedNoNATSClient: a program that only parses events, or keeps keyrings, links no NATS client.
func TestEventsNeedNoNATSClient(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps",
		"omiappreg.org/keyrotation/events", "omiappreg.org/keyrotation/keyring").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, path := range strings.Fields(string(out)) {
		if strings.Contains(path, "nats") {
			t.Errorf("%s is among what events and keyring import", path)
		}
	}
}
