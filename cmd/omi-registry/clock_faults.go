//go:build faults

package main

import (
	"os"
	"strings"
	"time"
)

// clock returns the machine's clock, moved by the duration that the file OMI_FAULTS_CLOCK holds
// now, if any.
func clock() func() time.Time {
	file := os.Getenv("OMI_FAULTS_CLOCK")
	return func() time.Time {
		text, err := os.ReadFile(file)
		if err != nil {
			return time.Now()
		}
		offset, err := time.ParseDuration(strings.TrimSpace(string(text)))
		if err != nil {
			return time.Now()
		}
		// A step of the wall clock does not move a monotonic one.
		return time.Now().Add(offset).Round(0)
	}
}
