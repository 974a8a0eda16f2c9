package schema

import (
	"embed"
	"io/fs"
)

//go:embed subscriber
var subscriber embed.FS

// Subscriber returns the migrations of a core service's database: what a subscriber to the invalidations keeps.
func Subscriber() fs.FS {
	sub, err := fs.Sub(subscriber, "subscriber")
	if err != nil {
		panic("schema: " + err.Error()) // the folder is embedded above
	}
	return sub
}
