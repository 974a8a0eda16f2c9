package testenv

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/keyformat"
)

// CoreUsers are the users that deploy/nats/nats-server.conf names.
func CoreUsers() []string { return []string{"SYSTEM", "REGISTRY", "OPERATOR", "AUTHSUB", "BILLINGSUB"} }

// SecuredBroker is a broker with the configuration of deploy/nats, TLS, and users with nkeys.
type SecuredBroker struct {
	t      testing.TB
	folder string
	server *server.Server
}

// NewSecuredBroker starts a broker with deploy/nats/nats-server.conf as it is. accounts returns the
// configuration of further accounts, as `omi-registry nats` prints it; nkey creates a user with a
// name, and returns its public key.
func NewSecuredBroker(t testing.TB, accounts func(nkey func(user string) string) string) *SecuredBroker {
	t.Helper()
	return NewSmallSecuredBroker(t, "", accounts)
}

// NewSmallSecuredBroker is [NewSecuredBroker] with a limit for all streams, such as "64MB". Empty:
// no limit but the disk.
func NewSmallSecuredBroker(t testing.TB, store string, accounts func(nkey func(user string) string) string) *SecuredBroker {
	t.Helper()
	b := &SecuredBroker{t: t, folder: t.TempDir()}
	conf, err := os.ReadFile(filepath.Join(moduleRoot(t), "deploy", "nats", "nats-server.conf"))
	if err != nil {
		t.Fatal(err)
	}
	const folder = "  store_dir: $BROKER_STORE\n"
	room := folder
	if store != "" {
		room += "  max_file_store: " + store + "\n"
	}
	b.write("nats-server.conf", strings.Replace(string(conf), folder, room, 1))
	Certify(t, b.CA(), b.file("server.pem"), b.file("server-key.pem"))
	b.write("settings.conf", fmt.Sprintf("server_name: omi-test\nlisten: \"127.0.0.1:-1\"\nBROKER_STORE: %q\nBROKER_SYNC: \"2m\"\nBROKER_CERT: %q\nBROKER_CERT_KEY: %q\n",
		b.file("streams"), b.file("server.pem"), b.file("server-key.pem")))
	var keys strings.Builder
	for _, user := range CoreUsers() {
		fmt.Fprintf(&keys, "NKEY_%s: %s\n", user, b.newUser(user))
	}
	b.write("keys.conf", keys.String())
	b.write("accounts.conf", accounts(b.newUser))
	b.server = ServeConfig(t, b.file("nats-server.conf"))
	return b
}

// AddAccount creates a user, and appends an account to accounts.conf. account gets the user's
// public nkey. [SecuredBroker.Reload] puts the account into effect.
func (b *SecuredBroker) AddAccount(user string, account func(nkey string) string) {
	b.t.Helper()
	have, err := os.ReadFile(b.file("accounts.conf"))
	if err != nil {
		b.t.Fatal(err)
	}
	b.write("accounts.conf", string(have)+account(b.newUser(user)))
}

// Reload is `nats-server --signal reload`.
func (b *SecuredBroker) Reload() {
	b.t.Helper()
	if err := b.server.Reload(); err != nil {
		b.t.Fatal(err)
	}
}

// URL is what clients connect to.
func (b *SecuredBroker) URL() string { return "tls://" + b.Addr() }

// Addr is its host:port.
func (b *SecuredBroker) Addr() string { return b.server.Addr().String() }

// CA is the file of the authority that signed its certificate.
func (b *SecuredBroker) CA() string { return b.file("ca.pem") }

// Seed is the file of a user's private nkey.
func (b *SecuredBroker) Seed(user string) string {
	return b.file(strings.NewReplacer("/", "_").Replace(user) + ".nk")
}

// Connect connects as a user. denied gets the error of each operation that the broker does not
// permit.
func (b *SecuredBroker) Connect(user string, denied func(error)) *nats.Conn {
	b.t.Helper()
	nkey, err := nats.NkeyOptionFromSeed(b.Seed(user))
	if err != nil {
		b.t.Fatal(err)
	}
	return connect(b.t, b.URL(), nkey, nats.RootCAs(b.CA()), nats.Name(user),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied(err) }))
}

// TryConnect connects as a user, or returns the reason why it can't.
func (b *SecuredBroker) TryConnect(user string) (*nats.Conn, error) {
	b.t.Helper()
	nkey, err := nats.NkeyOptionFromSeed(b.Seed(user))
	if err != nil {
		b.t.Fatal(err)
	}
	return nats.Connect(b.URL(), nkey, nats.RootCAs(b.CA()), nats.Timeout(time.Minute))
}

func (b *SecuredBroker) file(name string) string { return filepath.Join(b.folder, name) }

func (b *SecuredBroker) write(name, content string) {
	b.t.Helper()
	if err := os.WriteFile(b.file(name), []byte(content), 0o600); err != nil { //nolint:gosec // a file of the test
		b.t.Fatal(err)
	}
}

// newUser creates the nkey of a user, and returns the public key.
func (b *SecuredBroker) newUser(name string) string {
	b.t.Helper()
	key := events.GenerateSigningKey()
	seed, err := keyformat.EncodePrivate(key, keyformat.NKey)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := keyfile.CreateFile(b.Seed(name), seed); err != nil {
		b.t.Fatal(err)
	}
	public, err := keyformat.EncodePublic(key.Public(), keyformat.NKey)
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(string(public))
}

// moduleRoot is the folder of go.mod. Tests run in the folder of their package, which is below it.
func moduleRoot(t testing.TB) string {
	t.Helper()
	folder, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(folder, "go.mod")); err == nil {
			return folder
		}
		parent := filepath.Dir(folder)
		if parent == folder {
			t.Fatal("there is no go.mod above the test")
		}
		folder = parent
	}
}

// Certify creates an authority, and a certificate for the loopback address that it signs.
func Certify(t testing.TB, caFile, certFile, keyFile string) {
	t.Helper()
	authority, caKey := template("test authority"), newKey(t)
	authority.IsCA, authority.BasicConstraintsValid, authority.KeyUsage = true, true, x509.KeyUsageCertSign
	ca := issue(t, authority, authority, caKey, caKey)
	key := newKey(t)
	leaf := template("test broker")
	leaf.IPAddresses, leaf.KeyUsage = []net.IP{net.IPv4(127, 0, 0, 1)}, x509.KeyUsageDigitalSignature
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	cert := issue(t, leaf, authority, key, caKey)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]pem.Block{
		caFile: {Type: "CERTIFICATE", Bytes: ca}, certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(&block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		t.Fatal(err)
	}
}

func template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func issue(t testing.TB, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
