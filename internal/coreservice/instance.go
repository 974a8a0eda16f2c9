package coreservice

import (
	"cmp"
	"fmt"
	"os"
	"strings"
)

// HostInstance turns the name of this host into the name of an instance: in lower case, with
// hyphens for all characters that an instance's name can't have.
func HostInstance() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("ask for the name of this host, which names the instance: %w", err)
	}
	name := strings.Map(func(r rune) rune {
		if instanceRune(r) {
			return r
		}
		return '-'
	}, strings.ToLower(host))
	name = strings.Trim(name[:min(len(name), instanceMost)], "-")
	return cmp.Or(name, "host"), nil
}

// instanceMost is the longest name of an instance, in bytes.
const instanceMost = 128

// CheckInstance returns an error for a text that can't be the name of an instance.
func CheckInstance(name string) error {
	if name == "" || len(name) > instanceMost || strings.ContainsFunc(name, func(r rune) bool { return !instanceRune(r) }) {
		return fmt.Errorf("the name of an instance has letters, digits, hyphens and underscores, %d at most, not %.150q", instanceMost, name)
	}
	return nil
}

func instanceRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
}
