//go:build faults

package main

import (
	"os"
	"strings"
	"time"
)

// clock is the machine's, moved by what the file OMI_FAULTS_CLOCK holds now: a duration, or nothing at all.
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
		return time.Now().Add(offset).Round(0) // a step of the wall clock moves no monotonic one
	}
}
