// Package schema holds the schemas of the three databases as migrations, once for SQLite and once
// for PostgreSQL and CockroachDB. The registry, Auth and Billing apply them when they open their
// databases. Use this package to review the statements, or to apply them with a tool of your own.
//
//	registry/{sqlite,postgres}    the registry's database
//	subscriber/{sqlite,postgres}  what Auth's and Billing's databases share
//	auth/{sqlite,postgres}        what only Auth's has
//	billing/{sqlite,postgres}     what only Billing's has
//
// The README next to this file says how to add a migration.
//
// The folder messages and asyncapi.yaml, which describe the protocol for tools, are not part of any
// program.
//
// # Compatibility
//
// A released migration never changes; a change of the schema is a new migration with the next
// number. Tables, columns and indexes may change in any version, so don't rely on them in other
// programs. JSON Schemas and AsyncAPI describe the protocol and change only with it.
package schema

import (
	"cmp"
	"embed"
	"io/fs"
	"slices"
)

//go:embed registry subscriber auth billing
var files embed.FS

// Registry returns the migrations of the App Registry's database.
func Registry() fs.FS { return sub("registry") }

// Auth returns the migrations of an Auth Provider's database.
func Auth() fs.FS { return union{sub("subscriber"), sub("auth")} }

// Billing returns the migrations of a Billing Service's database.
func Billing() fs.FS { return union{sub("subscriber"), sub("billing")} }

func sub(folder string) fs.FS {
	fsys, err := fs.Sub(files, folder)
	if err != nil {
		panic("schema: " + err.Error()) // the folder is embedded above
	}
	return fsys
}

// union is two folders laid over each other, which have no file in common.
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
