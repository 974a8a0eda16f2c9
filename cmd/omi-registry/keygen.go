package main

import (
	"errors"
	"os"
	"path/filepath"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
)

// publicMode is of files that anyone may read.
const publicMode = 0o644

type keygenCmd struct {
	Out       string `required:"" placeholder:"FILE" help:"The new key's file; it gets mode 0600, and must not exist yet."`
	PublicOut string `name:"public-out" placeholder:"FILE" help:"Write the public key to this file too, as the subscribers' --trust-file takes it."`
	IfMissing bool   `name:"if-missing" help:"Keep the key that --out has, if there is one."`
	JSON      bool   `help:"Print one JSON object."`
}

// Run makes a key.
func (c *keygenCmd) Run() error {
	if err := c.checkPublicOut(); err != nil { // before there is a key without it
		return err
	}
	key, err := c.key()
	if err != nil {
		return process.Usage(err)
	}
	if err := c.writePublic(key.Public()); err != nil {
		return err
	}
	if c.JSON {
		return process.PrintJSON(map[string]string{"file": c.Out, "public_key": key.Public().String()})
	}
	return process.Print("The registry's private key is in %s (mode 0600).\nIts public key, which subscribers --trust:\n%s\n", c.Out, key.Public())
}

// checkPublicOut refuses a file that holds something else than a public key, such as a private one. A device or a pipe holds
// nothing.
func (c *keygenCmd) checkPublicOut() error {
	if c.PublicOut == "" {
		return nil
	}
	if filepath.Clean(c.PublicOut) == filepath.Clean(c.Out) {
		return process.Usagef("--public-out: %s is the private key's own file: name another", c.PublicOut)
	}
	info, err := os.Stat(c.PublicOut)
	held := err == nil && info.Mode().IsRegular() && info.Size() > 0 // what can't be written, writing says
	if !held {
		return nil
	}
	if keys, err := keyfile.ReadPublicKeys(c.PublicOut); err != nil || len(keys) != 1 {
		return process.Usagef("--public-out: %s is there and holds something else than one public key: name another file", c.PublicOut)
	}
	return nil
}

func (c *keygenCmd) writePublic(key events.PublicKey) error {
	if c.PublicOut == "" {
		return nil
	}
	if err := c.checkPublicOut(); err != nil { // it may be the private key's file by another name
		return err
	}
	if err := os.WriteFile(c.PublicOut, []byte(key.String()+"\n"), publicMode); err != nil {
		return process.Usagef("--public-out: %w", err)
	}
	return nil
}

func (c *keygenCmd) key() (events.SigningKey, error) {
	if c.IfMissing {
		if key, err := keyfile.Read(c.Out); !errors.Is(err, keyfile.ErrMissing) {
			return key, err
		}
	}
	key := events.GenerateSigningKey()
	return key, keyfile.Create(c.Out, key)
}
