//go:build !faults

package main

import "time"

// clock is the registry's: the machine's. What internal/e2e builds with the tag faults has another, that a test can move.
func clock() func() time.Time { return time.Now }
