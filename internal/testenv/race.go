//go:build race

package testenv

// raced: the race detector makes the tests busy, so more of them at a time only hold one another
// up.
const raced = true
