package client_test

import (
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
)

func open(t *testing.T, folder string) *client.Folder {
	t.Helper()
	f, err := client.OpenFolder(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func public(t *testing.T, key crypto.Signer, err error) events.PublicKey {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	k, err := events.PublicKeyOf(key)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestFolder(t *testing.T) {
	t.Parallel()
	folder := filepath.Join(t.TempDir(), "a", "keys")
	f, ctx := open(t, folder), t.Context()
	release, err := f.TryLock(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []*client.Folder{f, open(t, folder)} {
		if _, err := other.TryLock(ctx); !errors.Is(err, client.ErrLocked) {
			t.Errorf("lock it twice: %v", err)
		}
	}
	for _, slot := range []client.Slot{client.Current, client.Pending} {
		if _, err := f.Signer(ctx, slot); !errors.Is(err, client.ErrNoKey) {
			t.Errorf("%s in an empty store: %v", slot, err)
		}
	}
	if text, err := f.Load(ctx); err != nil || len(text) > 0 {
		t.Errorf("an empty journal: %q, %v", text, err)
	}
	key, err := f.Generate(ctx, client.Current)
	old := public(t, key, err)
	key, err = f.Generate(ctx, client.Pending)
	lost := public(t, key, err)
	key, err = f.Generate(ctx, client.Pending)
	pending := public(t, key, err)
	if err := f.Save(ctx, []byte("a journal")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) != 4 { // key, pending, journal, lock: nothing temporary stays
		t.Errorf("%v, %v", entries, err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", entry.Name(), info.Mode(), err)
		}
	}
	if info, err := os.Stat(folder); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", info.Mode(), err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}

	f = open(t, folder)
	if _, err := f.TryLock(ctx); err != nil {
		t.Errorf("lock it when it is free: %v", err)
	}
	key, err = f.Signer(ctx, client.Current)
	if got := public(t, key, err); got != old {
		t.Errorf("current is %s, want %s", got, old)
	}
	if text, err := f.Load(ctx); err != nil || string(text) != "a journal" {
		t.Errorf("the journal: %q, %v", text, err)
	}
	if err := f.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	key, err = f.Signer(ctx, client.Current)
	if got := public(t, key, err); got != pending || got == lost {
		t.Errorf("promoted %s, want %s", got, pending)
	}
	if _, err := f.Signer(ctx, client.Pending); !errors.Is(err, client.ErrNoKey) {
		t.Errorf("pending after the promotion: %v", err)
	}
	if err := f.Promote(ctx); err == nil {
		t.Error("promoted a key that is not there")
	}
	for range 2 {
		if err := f.Save(ctx, nil); err != nil {
			t.Errorf("end the journal: %v", err)
		}
	}
}

// TestFolderReadableByOthers: such a key is not used, and nobody is told what it is.
func TestFolderReadableByOthers(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	f := open(t, folder)
	if _, err := f.Generate(t.Context(), client.Current); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, "key.pem")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = f.Signer(t.Context(), client.Current)
	if err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) || strings.Contains(err.Error(), string(content[30:60])) {
		t.Errorf("a key that others can read: %v", err)
	}
}

// TestSigner: pure Ed25519 over the message, as every verifier expects it.
func TestSigner(t *testing.T) {
	t.Parallel()
	d := start()
	t.Cleanup(d.stop)
	c, err := client.Open(t.Context(), client.Config{Target: d.target, Store: open(t, d.folder), Conn: d.nc, Trust: d.trust})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	signer, message := c.Signer(), []byte("a message")
	for _, opts := range []crypto.SignerOpts{nil, crypto.Hash(0), &ed25519.Options{}} {
		signature, err := signer.Sign(nil, message, opts)
		if err != nil || !ed25519.Verify(signer.Public().(ed25519.PublicKey), message, signature) {
			t.Errorf("sign with %#v: %v", opts, err)
		}
	}
	for _, opts := range []crypto.SignerOpts{crypto.SHA512, &ed25519.Options{Hash: crypto.SHA512}, &ed25519.Options{Context: "c"}} {
		if _, err := signer.Sign(nil, message, opts); !errors.Is(err, client.ErrOptions) {
			t.Errorf("sign with %#v: %v", opts, err)
		}
	}
}

// TestJournalOfAnother: a store belongs to one service, and what is no journal is not taken for one.
func TestJournalOfAnother(t *testing.T) {
	t.Parallel()
	d := start()
	t.Cleanup(d.stop)
	f := open(t, d.folder)
	for _, text := range []string{"{", "null", `{"target":"org.example.shop.crm"}`} {
		if err := f.Save(t.Context(), []byte(text)); err != nil {
			t.Fatal(err)
		}
		c, err := client.Open(t.Context(), client.Config{Target: d.target, Store: f, Conn: d.nc, Trust: d.trust})
		if !errors.Is(err, client.ErrJournal) {
			t.Errorf("a journal %s: %v", text, err)
		}
		if err == nil {
			c.Close()
		}
	}
}

// TestEventsHoldNoSecret: whatever is logged of them.
func TestEventsHoldNoSecret(t *testing.T) {
	t.Parallel()
	key := events.GenerateSigningKey()
	e := client.Event{Kind: client.Applied, Key: key.Public(), Sequence: 3, Durable: "authsub", Err: errors.New("broken")}
	const want = "applied by authsub, sequence 3, key %s: broken"
	if got := e.String(); got != fmt.Sprintf(want, key.Public()) {
		t.Errorf("got %s", got)
	}
	if got := e.LogValue().String(); !strings.Contains(got, "kind=applied") || !strings.Contains(got, "sequence=3") {
		t.Errorf("got %s", got)
	}
}

func BenchmarkSigner(b *testing.B) {
	d := start()
	b.Cleanup(d.stop)
	store, err := client.OpenFolder(d.folder)
	if err != nil {
		b.Fatal(err)
	}
	c, err := client.Open(b.Context(), client.Config{Target: d.target, Store: store, Conn: d.nc, Trust: d.trust})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	signer, message := c.Signer(), make([]byte, 256)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := signer.Sign(nil, message, crypto.Hash(0)); err != nil {
			b.Fatal(err)
		}
	}
}

// TestPrivateKeyAsPath: whoever gives a key itself in place of its file does not read it in the error.
func TestPrivateKeyAsPath(t *testing.T) {
	t.Parallel()
	const key = "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC"
	for _, open := range []func(string) (*client.Folder, error){client.OpenFolder, client.OpenFile} {
		if _, err := open("-----BEGIN PRIVATE KEY-----\n" + key + "\n-----END PRIVATE KEY-----\n"); err == nil || strings.Contains(err.Error(), key) {
			t.Errorf("%v", err)
		}
	}
}
