package registry

import (
	"testing"

	"omiappreg.org/keyrotation/internal/testenv"
)

// TestHostileSettings: what a role's sessions are told by PostgreSQL changes nothing, in whatever
// mode, and behind a pooler.
func TestHostileSettings(t *testing.T) {
	t.Parallel()
	for name, url := range testenv.HostileURLs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, d, _ := boundWorld(t, url)
			w.commit(d.rotate())
			w.settled()
			w.checked()
			w.oneSequenceOnce(d.target)
		})
	}
}
