package schema

import (
	"embed"
	"io/fs"
)

//go:embed registry
var registry embed.FS

// Registry returns the migrations of the App Registry's database.
func Registry() fs.FS {
	sub, err := fs.Sub(registry, "registry")
	if err != nil {
		panic("schema: " + err.Error()) // the folder is embedded above
	}
	return sub
}
