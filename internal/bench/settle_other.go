//go:build !unix

package bench

// Settle does nothing: there is no such call here.
func Settle() {}
