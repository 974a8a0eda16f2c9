//go:build race

package testenv

// raced says that the race detector is on. It keeps the tests busy, so running more of them at a
// time only slows each of them down.
const raced = true
