package access_test

import (
	"testing"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/access"
)

// reloads is the number that deploy/nats/README.md gives.
const reloads = 2

// TestAddService: a service that deploy/nats/README.md adds to a running broker reaches the
// registry, with as many reloads as it says. Clients that were connected before go on.
func TestAddService(t *testing.T) {
	t.Parallel()
	w, b := securedWorld(t)
	before := w.connect("cms", func(error) {})
	b.AddAccount("till", func(nkey string) string { return access.Service(target(t, till), nkey).String() })
	for range reloads {
		b.Reload()
	}
	after := b.Connect("till", func(error) {})
	for name, nc := range map[string]*nats.Conn{"cms": before, "till": after} {
		if _, err := nc.Request(events.LookupRegistrySubject, nil, patience); err != nil {
			t.Errorf("%s does not reach the registry: %v", name, err)
		}
	}
}
