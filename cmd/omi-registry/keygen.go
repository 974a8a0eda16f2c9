package main

import "omiappreg.org/keyrotation/internal/keygen"

type keygenCmd struct {
	Out       string `required:"" placeholder:"FILE" help:"The new key's file, mode 0600; it must not exist yet."`
	PublicOut string `name:"public-out" placeholder:"FILE" help:"Write the public key to this file, for --trust-file of the subscribers."`
	IfMissing bool   `name:"if-missing" help:"If --out has a key already, keep it."`
	JSON      bool   `help:"Print one JSON object."`
}

// Help is shown by --help.
func (c *keygenCmd) Help() string {
	return `Every subscriber trusts this key, and events that it signed are kept for ever, so keep the
file. Another key never replaces it by accident: if --public-out has the public half of another key,
the command makes no key, even with --if-missing, because a private key that was lost with its disk
must be restored. To change the registry's key on purpose, use new files for the key and its public
half.`
}

// Run makes a key.
func (c *keygenCmd) Run() error { return keygen.Pair(*c).Run() }
