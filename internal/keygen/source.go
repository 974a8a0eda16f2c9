package keygen

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/alecthomas/kong"

	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/keyformat"
)

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
