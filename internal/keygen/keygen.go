// Package keygen is `omi keygen`, which makes and converts keys, and `omi-registry keygen`, which
// makes the registry's.
package keygen

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/go-json-experiment/json/jsontext"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/keyformat"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
)

// publicMode is the mode of files that anyone may read.
const publicMode = 0o644

// Request is what `omi keygen` asks for: its grammar.
type Request struct {
	Out    string            `placeholder:"FILE" help:"The file to write; it must not exist yet. A private key's gets mode 0600."`
	From   Source            `placeholder:"FILE|-|ed25519:…" help:"Convert this key: a file, - for standard input, or a public key."`
	Format *keyformat.Format `enum:"ed25519,pem,jwk,openssh,nkey" placeholder:"FORM" help:"The form to write: pem (the default), jwk, openssh, nkey or ed25519."`
	Public bool              `help:"With --from: write only the public half."`
	JSON   bool              `help:"Print one JSON object."`
}

// Help is shown by --help.
func (*Request) Help() string {
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
func (c Request) Run() error {
	if c.From == "" {
		return c.generate()
	}
	key, err := c.From.read()
	if err != nil {
		return process.Usagef("--from: %w", err)
	}
	if c.Public || c.form() == keyformat.Text {
		key.Private = events.SigningKey{}
	}
	if c.Out != "" {
		return c.write(key)
	}
	return c.print(key)
}

func (c *Request) generate() error {
	if c.Out == "" {
		return process.Usagef("missing flags: --out=FILE (see omi keygen --help)")
	}
	if c.Public {
		return process.Usagef("--public goes with --from: a new key's public half is printed anyway")
	}
	private := events.GenerateSigningKey()
	return c.write(keyformat.Key{Public: private.Public(), Private: private})
}

// form is the form that is written to a file.
func (c *Request) form() keyformat.Format {
	if c.Format == nil {
		return keyformat.PEM
	}
	return *c.Format
}

// write writes the private half to --out, or the public one if there is no private one.
func (c *Request) write(key keyformat.Key) (err error) {
	done := "Wrote a private key to %s (mode 0600). Its public key:\n%s\n"
	if key.Private.IsZero() {
		done = "Wrote to %s the public key\n%s\n"
		err = createPublic(c.Out, key.Public, c.form())
	} else {
		err = createPrivate(c.Out, key.Private, c.form())
	}
	if err != nil {
		return process.Usage(err)
	}
	view := map[string]string{"file": c.Out, "public_key": key.Public.String()}
	public := view["public_key"]
	if c.form() == keyformat.NKey { // the broker knows its users only by their nkeys
		nkey, err := keyformat.EncodePublic(key.Public, keyformat.NKey)
		if err != nil {
			return err
		}
		public = strings.TrimSpace(string(nkey))
		view["nkey"] = public
	}
	if c.JSON {
		return process.PrintJSON(view)
	}
	return process.Print(done, c.Out, public)
}

func createPrivate(path string, key events.SigningKey, form keyformat.Format) error {
	content, err := keyformat.EncodePrivate(key, form)
	if err != nil {
		return err
	}
	return keyfile.CreateFile(path, content)
}

func createPublic(path string, key events.PublicKey, form keyformat.Format) error {
	if path == "-" {
		return errors.New("--out: name a file, and not -; without --out, a public key is printed")
	}
	content, err := keyformat.EncodePublic(key, form)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, publicMode)
	if info, statErr := os.Stat(path); errors.Is(err, fs.ErrExist) && statErr == nil && info.IsDir() {
		return fmt.Errorf("%s is a folder: name a file in it", path)
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: the file exists already: name another file", path)
	}
	if err != nil {
		return fmt.Errorf("write the public key: %w", err)
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path) // half a key is useless
		return fmt.Errorf("write the public key: %w", err)
	}
	return nil
}

// print prints the public half, in the form that was asked for or in every form.
func (c *Request) print(key keyformat.Key) error {
	switch {
	case c.Format == nil:
		return printForms(key.Public, c.JSON)
	case !key.Private.IsZero():
		return process.Usagef("a private key is never printed: " +
			"add --out FILE to write it there, or --public to print its public half")
	case c.JSON:
		return process.Usagef("--format prints the key itself, and --json an object with all forms: " +
			"give one of them, or --out FILE")
	}
	content, err := keyformat.EncodePublic(key.Public, *c.Format)
	if err != nil {
		return err
	}
	return process.Print("%s", printable.Composed(content))
}

// publicForms is a public key in each form.
type publicForms struct {
	PublicKey string         `json:"public_key"`
	JWK       jsontext.Value `json:"jwk"`
	OpenSSH   string         `json:"openssh"`
	PEM       string         `json:"pem"`
	NKey      string         `json:"nkey"`
	KeyID     string         `json:"kid"` // RFC 7638
}

func printForms(key events.PublicKey, asJSON bool) error {
	texts := map[keyformat.Format]string{}
	for _, form := range []keyformat.Format{keyformat.JWK, keyformat.OpenSSH, keyformat.PEM, keyformat.NKey} {
		content, err := keyformat.EncodePublic(key, form)
		if err != nil {
			return err
		}
		texts[form] = string(content)
	}
	forms := publicForms{
		PublicKey: key.String(), KeyID: keyformat.Thumbprint(key),
		JWK: jsontext.Value(texts[keyformat.JWK]), PEM: texts[keyformat.PEM],
		OpenSSH: strings.TrimSpace(texts[keyformat.OpenSSH]), NKey: strings.TrimSpace(texts[keyformat.NKey]),
	}
	if asJSON {
		return process.PrintJSON(forms)
	}
	return process.Print("Public key  %s\nJWK         %sThumbprint  %s (a JWK's kid)\nOpenSSH     %s\nNATS nkey   %s\nPEM\n%s",
		forms.PublicKey, printable.Composed(forms.JWK), forms.KeyID, forms.OpenSSH, forms.NKey, printable.Composed(forms.PEM))
}

// Source is where a key comes from: a file, - or the text of a public key. Its errors repeat it
// only if it is a file's name, because it could be a private key by mistake.
type Source string

// Decode implements kong.MapperValue: kong's own error would quote a value that begins with a
// hyphen, as PEM does.
func (s *Source) Decode(ctx *kong.DecodeContext) error {
	text, ok := ctx.Scan.Pop().Value.(string)
	if !ok || text == "" || text != "-" && strings.HasPrefix(text, "-") {
		return errKeySource
	}
	*s = Source(text)
	return nil
}

var errKeySource = errors.New("give a file, - for the standard input, or a public key as ed25519:…; " +
	"a private key is never an argument, since others can see those")

func (s Source) read() (keyformat.Key, error) {
	if strings.HasPrefix(string(s), "ed25519:") {
		return keyformat.Parse([]byte(s))
	}
	if s == "-" {
		return readAnyKey(os.Stdin)
	}
	f, err := os.Open(string(s))
	if errors.Is(err, fs.ErrPermission) {
		return keyformat.Key{}, fmt.Errorf("%s: this user may not read it", s)
	}
	if err != nil {
		return keyformat.Key{}, fmt.Errorf("no such file: %w", errKeySource)
	}
	defer func() { _ = f.Close() }() // it was only read
	return readAnyKey(f)
}

// readAnyKey reads a key in any form. If it is private and in a file, only its owner may be able to
// read the file.
func readAnyKey(f *os.File) (keyformat.Key, error) {
	info, err := f.Stat()
	if err != nil {
		return keyformat.Key{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if info.IsDir() {
		return keyformat.Key{}, fmt.Errorf("%s: is a folder", f.Name())
	}
	content, err := io.ReadAll(io.LimitReader(f, keyformat.MaxSize+1))
	if err != nil {
		return keyformat.Key{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	key, err := keyformat.Parse(content)
	if err != nil {
		return keyformat.Key{}, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if !key.Private.IsZero() && info.Mode().IsRegular() {
		err = keyfile.CheckMode(f.Name(), info)
	}
	return key, err
}
