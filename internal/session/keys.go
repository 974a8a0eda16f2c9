package session

import (
	"errors"
	"fmt"
	"os"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
)

// MasterKey reads the file of --master-key.
func MasterKey(path string) (events.SigningKey, error) {
	return ReadKey("--master-key", path, "the developer makes one with `omi keygen --out FILE`, and the registry's operator adds it")
}

// ServiceKey reads the file of --key, or the current key in the folder of a key store.
func ServiceKey(path string) (events.SigningKey, error) {
	return ReadKey("--key", client.KeyFile(path), "omi bind makes a service's first one, and omi reset replaces one that is lost")
}

// ReadKey reads the key's file that a flag names. If it is missing, the error says how to get one.
func ReadKey(flag, path, origin string) (events.SigningKey, error) {
	key, err := keyfile.Read(path)
	if errors.Is(err, keyfile.ErrMissing) {
		err = fmt.Errorf("%w: %s", err, origin)
	}
	if err != nil {
		return key, process.Usagef("%s: %w", flag, err)
	}
	return key, nil
}

// Tighten restores mode 0600 of private keys' files, if a mount has let a group in, and says so. It
// also says who may replace the files.
func Tighten(paths ...string) {
	Remark(keyfile.Tighten(paths...))
	Remark(keyfile.OpenFolders(paths...))
}

// Remark prints a remark that is no error, if there is one.
func Remark(said string) {
	if said != "" {
		printable.Fprintf(os.Stderr, "omi: %s\n", said)
	}
}
