//go:build !faults

package main

import "time"

// clock returns the machine's clock. A program that is built with the tag faults has a clock that a
// test can move.
func clock() func() time.Time { return time.Now }
