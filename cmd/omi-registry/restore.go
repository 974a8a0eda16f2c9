package main

import (
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/sqldb"
)

type restoreCmd struct {
	process.Restore `embed:""`
	Database        database `embed:""`
}

// Help is shown by --help.
func (c *restoreCmd) Help() string {
	return c.Restore.Help() + `

The registry notices at its next start what the copy lacks: see omi-registry recover --help.`
}

// Run restores the registry's database.
func (c *restoreCmd) Run() error { return c.Restore.Run(c.Database.URL, sqldb.Registry) }
