package main

import (
	"omiappreg.org/keyrotation/internal/keyformat"
	"omiappreg.org/keyrotation/internal/keygen"
)

type keygenCmd struct {
	Out    string            `placeholder:"FILE" help:"The file to write; it must not exist yet. A private key's gets mode 0600."`
	From   keygen.Source     `placeholder:"FILE|-|ed25519:…" help:"Convert this key: a file, - for standard input, or a public key."`
	Format *keyformat.Format `enum:"ed25519,pem,jwk,openssh,nkey" placeholder:"FORM" help:"The form to write: pem (the default), jwk, openssh, nkey or ed25519."`
	Public bool              `help:"With --from: write only the public half."`
	JSON   bool              `help:"Print one JSON object."`
}

// Help is shown by --help.
func (c *keygenCmd) Help() string {
	return `A private key is written to a file (--out), never printed, and never taken as an argument.
--from recognises the form of a key: PEM (PKCS #8 or SPKI), JWK, OpenSSH, a NATS user's nkey or
ed25519:…

  # a new key
  omi keygen --out cms.pem
  # its public key: in every form, in one form
  omi keygen --from cms.pem
  omi keygen --from cms.pem --public --format jwk
  # a private key in another form, and back
  omi keygen --from ~/.ssh/id_ed25519 --out cms.pem
  omi keygen --from cms.pem --format openssh --out cms
  # a key for --nats-nkey; give its U… to the operator of the broker
  omi keygen --format nkey --out cms.nk

omi reads keys in the form pem. ed25519 is for public keys only.`
}

// Run makes a key, or converts one.
func (c *keygenCmd) Run() error { return keygen.Request(*c).Run() }
