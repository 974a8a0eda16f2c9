package main

import "omiappreg.org/keyrotation/internal/demo"

type demoCmd struct {
	JSON bool `help:"Print only one JSON object, at the end."`
}

// Help is shown by --help.
func (*demoCmd) Help() string {
	return `Takes five seconds, and leaves nothing behind. Exit code 1: a signature was refused that
should pass, or passed that should be refused.

  omi demo`
}

// Run shows the whole path.
func (c *demoCmd) Run() error { return demo.Run(c.JSON) }
