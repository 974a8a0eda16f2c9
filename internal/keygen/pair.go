package keygen

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
)

// Pair is what `omi-registry keygen` asks for: a registry's key, and a file with its public half.
type Pair struct {
	Out       string `required:"" placeholder:"FILE" help:"The new key's file, mode 0600; it must not exist yet."`
	PublicOut string `name:"public-out" placeholder:"FILE" help:"Write the public key to this file, for --trust-file of the subscribers."`
	IfMissing bool   `name:"if-missing" help:"If --out has a key already, keep it."`
	JSON      bool   `help:"Print one JSON object."`
}

// Help is shown by --help.
func (*Pair) Help() string {
	return `Every subscriber trusts this key, and events that it signed are kept for ever, so keep the
file. Another key never replaces it by accident: if --public-out has the public half of another key,
the command makes no key, even with --if-missing, because a private key that was lost with its disk
must be restored. To change the registry's key on purpose, use new files for the key and its public
half.`
}

// Run makes a key.
func (c Pair) Run() error {
	public, err := c.public() // before there is a key without it
	if err != nil {
		return err
	}
	key, err := c.key(public)
	if err != nil {
		return process.Usage(err)
	}
	if err := c.writePublic(key.Public()); err != nil {
		return err
	}
	if c.JSON {
		return process.PrintJSON(map[string]string{"file": c.Out, "public_key": key.Public().String()})
	}
	return process.Print("The registry's private key is in %s (mode 0600).\nIts public key, for --trust of the subscribers:\n%s\n", c.Out, key.Public())
}

// public returns the key in --public-out, or the zero key if there is none. It refuses a file that
// holds anything other than a public key, such as a private one, and a file that it can't read,
// because that may hold another key. A device or a pipe holds nothing.
func (c *Pair) public() (key events.PublicKey, err error) {
	switch c.PublicOut {
	case "":
		return key, nil
	case "-":
		return key, process.Usagef("--public-out: name a file; the public key is printed anyway")
	}
	if filepath.Clean(c.PublicOut) == filepath.Clean(c.Out) {
		return key, process.Usagef("--public-out: %s is the private key's own file: name another", c.PublicOut)
	}
	info, err := os.Stat(c.PublicOut)
	link, _ := os.Lstat(c.PublicOut)
	isLink := link != nil && link.Mode()&fs.ModeSymlink != 0
	switch {
	case isLink && (err != nil || info.Mode().IsRegular() && info.Size() == 0):
		return key, process.Usagef("--public-out: %s is a link, and there is no public key at its target: name the file itself, or remove the link", c.PublicOut)
	case errors.Is(err, fs.ErrNotExist):
		return key, nil
	case err != nil:
		return key, process.Usagef("--public-out: %w", err)
	case !info.Mode().IsRegular() || info.Size() == 0: // if it can't be written, writing fails
		return key, nil
	}
	keys, err := keyfile.ReadPublicKeys(c.PublicOut)
	if errors.Is(err, fs.ErrPermission) {
		return key, process.Usagef("--public-out: %w: let this user read it, because it may have another registry's key", err)
	}
	if err != nil || len(keys) != 1 {
		return key, process.Usagef("--public-out: %s exists and does not hold exactly one public key: name another file", c.PublicOut)
	}
	return keys[0], nil
}

// writePublic writes the public key, unless it is there: then the file, which may be read-only,
// stays as it is.
func (c *Pair) writePublic(key events.PublicKey) error {
	if c.PublicOut == "" {
		return nil
	}
	has, err := c.public() // it may be the private key's file by another name
	if err != nil || has == key {
		return err
	}
	if err := c.mayReplace(has, key); err != nil {
		return err
	}
	return writePublicFile(c.PublicOut, []byte(key.String()+"\n"))
}

// writePublicFile writes a file that is missing, or that is empty, or a device. It creates none
// through a link: anyone who may put links into the folder could otherwise choose which file this
// user creates.
func writePublicFile(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, publicMode)
	if errors.Is(err, fs.ErrExist) {
		f, err = openEmpty(path)
	}
	if err == nil {
		_, err = f.Write(content)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return process.Usagef("--public-out: %w", err)
	}
	return nil
}

// openEmpty opens an existing device, pipe, or empty file of exactly this name.
func openEmpty(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	named, nameErr := os.Lstat(path)
	err = errors.Join(err, nameErr)
	if err == nil && info.Mode().IsRegular() && (info.Size() > 0 || !os.SameFile(info, named)) {
		err = fmt.Errorf("%s was changed meanwhile", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// mayReplace refuses to let subscribers trust another key than they do.
func (c *Pair) mayReplace(has, key events.PublicKey) error {
	if has.IsZero() || has == key {
		return nil
	}
	return process.Usagef("--public-out: %s has another public key than the private key in %s: they don't belong together; "+
		"name the public file of this key, or restore its private key", c.PublicOut, c.Out)
}

// key returns the existing key, or makes one. If public is the half of a key that is gone, it makes
// none.
func (c *Pair) key(public events.PublicKey) (events.SigningKey, error) {
	key, err := keyfile.Read(c.Out)
	switch {
	case c.IfMissing && err == nil:
		return key, c.mayReplace(public, key.Public())
	case c.IfMissing && !errors.Is(err, keyfile.ErrMissing):
		return key, err
	case !public.IsZero() && errors.Is(err, keyfile.ErrMissing):
		return key, fmt.Errorf("%s is missing, and %s has the public half of it, %s: subscribers trust that key, and every event is signed by it. "+
			"Restore the private key; if it is lost for good and a new one is what you want, move %s away first", c.Out, c.PublicOut, public, c.PublicOut)
	}
	key = events.GenerateSigningKey()
	return key, keyfile.Create(c.Out, key)
}
