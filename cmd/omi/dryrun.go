package main

import (
	"errors"
	"time"

	"omiappreg.org/keyrotation/events"
)

func (c *rotateCmd) dryRun(events.Target, *time.Duration) error { return errors.New("stub") }
