package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"omiappreg.org/keyrotation/events"
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
	const give = "give its process the key by --trust, or in its --trust-file, which it reads again while it runs: it then applies what it had set aside"
	list := "list it by the command set-aside of its process"
	if aside, ok := subscriber.AsideOf(metadata); ok && aside.Failed != "" {
		d.wrong(name, fmt.Sprintf("%s could not handle events, at these places of the stream: %s", durable, aside.Failed),
			list+", correct the cause, and restart its process")
	}
	trusted, announced := metadata[events.TrustMetadata]
	if !announced {
		return // of another program
	}
	words := strings.Fields(trusted)
	untrusted := slices.DeleteFunc(slices.Clone(d.info.PublicKeys), func(key events.PublicKey) bool {
		return events.Trusts(words, d.info.Origin, key, time.Time{}, 0)
	})
	switch aside, _ := subscriber.AsideOf(metadata); {
	case len(untrusted) > 0:
		d.wrong(name, fmt.Sprintf("%s does not trust the key that the registry signs with, and sets its events aside: %s", durable, keyList(untrusted)),
			"ask who runs the registry whether this is its key; if so, "+give)
	case aside.Rereading:
		d.warn(name, durable+" is reading the stream again, for events that it had set aside and believes now",
			"look again; where this stays, at the log of its process")
	case aside.From > 0:
		d.warn(name, fmt.Sprintf("%s has set aside what looks like events, from sequence %d of the stream on: no key that it trusts signed them", durable, aside.From),
			list+"; if the registry has or had that key, "+give+"; else check who may publish at the broker")
	}
}
