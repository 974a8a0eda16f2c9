package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/internal/subscriber"
)

// examineTrusts checks what the durables of the stream of events say of themselves: which keys
// their processes trust, and what they have set aside.
func (d *doctor) examineTrusts() {
	for _, durable := range slices.Sorted(maps.Keys(d.readers)) {
		d.examineTrust("trust of "+durable, durable, d.readers[durable].Config.Metadata)
	}
}

func (d *doctor) examineTrust(name, durable string, metadata map[string]string) {
	const give = "give its process the key with --trust, or in its --trust-file, which needs no restart: it then applies what it had set aside"
	list := "list them with the command set-aside of its process"
	if aside, ok := subscriber.SetAsideOf(metadata); ok && aside.Failed != "" {
		d.wrong(name, fmt.Sprintf("%s could not handle the events at these places of the stream: %s", durable, aside.Failed),
			list+", fix the cause, and restart its process")
	}
	trusted, announced := metadata[events.TrustMetadata]
	if !announced {
		return // of another program
	}
	words := strings.Fields(trusted)
	untrusted := slices.DeleteFunc(slices.Clone(d.Info.PublicKeys), func(key events.PublicKey) bool {
		return events.Trusts(words, d.Info.Origin, key, time.Time{}, 0)
	})
	switch aside, _ := subscriber.SetAsideOf(metadata); {
	case len(untrusted) > 0:
		d.wrong(name, fmt.Sprintf("%s does not trust the registry's current key, and sets its events aside: %s", durable, session.KeyList(untrusted)),
			"ask the registry's operator whether this is its key; if so, "+give)
	case aside.Rereading:
		d.warn(name, durable+" is reading the stream again, because it now believes events that it had set aside",
			"look again; if this stays, look at the log of its process")
	case aside.From > 0:
		d.warn(name, fmt.Sprintf("%s has set aside messages from sequence %d of the stream on: no key that it trusts signed them", durable, aside.From),
			list+"; if the registry has or had that key, "+give+"; otherwise check which accounts may publish at the broker")
	}
}
