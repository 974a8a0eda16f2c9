package schema

import (
	"cmp"
	"embed"
	"io/fs"
	"slices"
)

//go:embed auth
var auth embed.FS

// Auth returns the migrations of an Auth Provider's database: those of [Subscriber], and what it has no use for is dropped.
func Auth() fs.FS {
	sub, err := fs.Sub(auth, "auth")
	if err != nil {
		panic("schema: " + err.Error()) // the folder is embedded above
	}
	return union{Subscriber(), sub}
}

// union is folders laid over each other, which have no file in common.
type union [2]fs.FS

// Open implements [fs.FS].
func (u union) Open(name string) (fs.File, error) {
	if file, err := u[0].Open(name); err == nil {
		return file, nil
	}
	return u[1].Open(name)
}

// ReadDir implements [fs.ReadDirFS].
func (u union) ReadDir(name string) ([]fs.DirEntry, error) {
	var all []fs.DirEntry
	for _, one := range u {
		entries, err := fs.ReadDir(one, name)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	slices.SortFunc(all, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	return all, nil
}
