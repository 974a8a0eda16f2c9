package sqldb_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestOpenWaitsAtEachStepOfTheHandshake: Open waits for a server that stops, starts or is
// overloaded, whatever the server says or doesn't say: before TLS, in the authentication, or after
// it.
func TestOpenWaitsAtEachStepOfTheHandshake(t *testing.T) {
	t.Parallel()
	database := testenv.Database(t, testenv.Postgres)
	authenticate := message('R', "\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00")
	for name, sick := range map[string]func(*frontConn){
		"closes at once":                func(*frontConn) {},
		"refuses TLS":                   func(c *frontConn) { c.before("N") },
		"cannot fork":                   func(c *frontConn) { c.before("Ecould not fork new process for connection\n\x00") },
		"closes before TLS":             func(c *frontConn) { c.before("S") },
		"speaks something else":         func(c *frontConn) { c.before("SHTTP/1.1 503 Service Unavailable\r\n\r\n") },
		"closes after the startup":      func(c *frontConn) { c.after("") },
		"starts":                        func(c *frontConn) { c.after(fatal("57P03", "the database system is starting up")) },
		"stops":                         func(c *frontConn) { c.after(fatal("57P03", "the database system is shutting down")) },
		"is told to stop":               func(c *frontConn) { c.after(fatal("57P01", "terminating connection")) },
		"has too many connections":      func(c *frontConn) { c.after(fatal("53300", "sorry, too many clients already")) },
		"has nothing behind it":         func(c *frontConn) { c.after(fatal("08P01", "pgbouncer cannot connect to server")) },
		"has an error of its own":       func(c *frontConn) { c.after(fatal("XX000", "could not open relation mapping file")) },
		"closes in the authentication":  func(c *frontConn) { c.after(authenticate) },
		"hangs in the authentication":   func(c *frontConn) { c.after(authenticate); c.hang() },
		"breaks off a message":          func(c *frontConn) { c.after(authenticate[:7]) },
		"authenticates out of order":    func(c *frontConn) { c.after(authenticate + message('R', "\x00\x00\x00\x00")) },
		"closes after it has let us in": func(c *frontConn) { c.after(message('R', "\x00\x00\x00\x00") + message('K', "12345678")) },
		"says something unknown":        func(c *frontConn) { c.after(message('T', "\x00\x00")) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFront(t, database, sick)
			opened := make(chan error, 1)
			go func() {
				db, err := sqldb.Open(t.Context(), f.url("require"), discard())
				if err == nil {
					err = db.Close()
				}
				opened <- err
			}()
			testenv.Eventually(t, time.Minute, "it is asked again", func() error {
				select {
				case err := <-opened:
					t.Fatalf("it ended: %v", err)
				default:
				}
				if f.refused.Load() < 2 {
					return errors.New("not yet")
				}
				return nil
			})
			f.healthy.Store(true)
			if err := <-opened; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOpenEndsWhatCantPass: a refusal that can't pass ends at once. If a server that restarts may
// say the same, it ends after a while.
func TestOpenEndsWhatCantPass(t *testing.T) {
	t.Parallel()
	database := testenv.Database(t, testenv.Postgres)
	for name, tt := range map[string]struct {
		mode string
		sick func(*frontConn)
		want string
	}{
		"wrong password":    {"require", func(c *frontConn) { c.after(fatal("28P01", "password authentication failed")) }, "user and password"},
		"not let in":        {"require", func(c *frontConn) { c.after(fatal("28000", "no pg_hba.conf entry")) }, "user and password"},
		"no database":       {"require", func(c *frontConn) { c.after(fatal("3D000", `database "x" does not exist`)) }, "create this database"},
		"no privilege":      {"require", func(c *frontConn) { c.after(fatal("42501", "permission denied for database")) }, "grant this user"},
		"unknown parameter": {"require", func(c *frontConn) { c.after(fatal("42704", "unrecognized configuration parameter")) }, "refuses such a connection"},
		"no TLS":            {"require", func(c *frontConn) { c.before("N") }, "sslmode=disable"},
		"CockroachDB's TLS": {"require", func(c *frontConn) { c.after(fatal("08P01", "node is running secure mode, SSL connection required")) }, "asks for TLS"},
		"PgBouncer's TLS":   {"require", func(c *frontConn) { c.after(fatal("08P01", "SSL required")) }, "asks for TLS"},
		"unknown authority": {"verify-full", func(c *frontConn) { c.after("") }, "sslrootcert"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFront(t, database, tt.sick)
			_, err := sqldb.Open(t.Context(), f.url(tt.mode), discard())
			if !errors.Is(err, sqldb.ErrURL) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("it says %v", err)
			}
		})
	}
}

// TestStartWaitsAfterEachMessage: if a connection breaks after any message of the server, in the
// handshake or in the queries of a start, the process makes another one.
func TestStartWaitsAfterEachMessage(t *testing.T) {
	t.Parallel()
	database := testenv.Database(t, testenv.Postgres)
	if err := open(t, database).Migrate(t.Context(), sqldb.Registry, files(firstFiles())); err != nil {
		t.Fatal(err)
	}
	start := func(t *testing.T, breakAt int64) (seen int64) {
		t.Helper()
		var n atomic.Int64
		url := between(t, database, "", func(byte, []byte) (instead []byte) {
			if n.Add(1) == breakAt {
				return []byte{}
			}
			return nil
		})
		db, err := sqldb.Open(t.Context(), url, discard())
		if err != nil {
			t.Fatalf("message %d: open: %v", breakAt, err)
		}
		defer func() { _ = db.Close() }()
		err = sqldb.Await(t.Context(), discard(), func() error { return db.Migrate(t.Context(), sqldb.Registry, files(firstFiles())) })
		if err != nil {
			t.Fatalf("message %d: migrate: %v", breakAt, err)
		}
		return n.Load()
	}
	all := start(t, 0)
	if all < 20 {
		t.Fatalf("only %d messages", all)
	}
	for at := range all {
		t.Run(strconv.FormatInt(at+1, 10), func(t *testing.T) {
			t.Parallel()
			start(t, at+1)
		})
	}
}

// front stands before a server, and does what the server would not while it is not healthy. It
// speaks TLS.
type front struct {
	database *url.URL
	addr     string
	sick     func(*frontConn)
	tls      *tls.Config
	healthy  atomic.Bool
	refused  atomic.Int64
}

func newFront(t *testing.T, database string, sick func(*frontConn)) *front {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	f := &front{
		database: u, addr: listener.Addr().String(), sick: sick,
		tls: &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}, MinVersion: tls.VersionTLS12},
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go f.serve(conn)
		}
	}()
	return f
}

// url is the database's, by the front.
func (f *front) url(sslmode string) string {
	u := *f.database
	u.Host = f.addr
	u.RawQuery = url.Values{"sslmode": {sslmode}, "connect_timeout": {"1"}}.Encode()
	return u.String()
}

func (f *front) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	if !f.healthy.Load() {
		f.sick(&frontConn{conn, f.tls})
		f.refused.Add(1)
		return
	}
	c := frontConn{conn, f.tls}
	client, err := c.secure()
	if err != nil {
		return
	}
	server, err := net.Dial("tcp", f.database.Host)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	_, _ = io.Copy(client, server)
}

// frontConn is one connection.
type frontConn struct {
	net.Conn
	tls *tls.Config
}

// before answers the question for TLS with something.
func (c *frontConn) before(text string) {
	if _, err := io.ReadFull(c, make([]byte, 8)); err == nil {
		_, _ = io.WriteString(c, text)
	}
}

func (c *frontConn) secure() (net.Conn, error) {
	c.before("S")
	conn := tls.Server(c.Conn, c.tls)
	err := conn.Handshake()
	return conn, err
}

// after answers the message that begins a session with something.
func (c *frontConn) after(text string) {
	conn, err := c.secure()
	if err != nil {
		return
	}
	length := make([]byte, 4)
	if _, err := io.ReadFull(conn, length); err != nil {
		return
	}
	if _, err := io.CopyN(io.Discard, conn, int64(binary.BigEndian.Uint32(length))-4); err == nil {
		_, _ = io.WriteString(conn, text)
	}
}

// hang waits until the other side gives up.
func (c *frontConn) hang() { _, _ = io.Copy(io.Discard, c.Conn) }

// message is one of the server's.
func message(kind byte, body string) string {
	return string(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4))) + body
}

func fatal(state, text string) string {
	return message('E', "SFATAL\x00VFATAL\x00C"+state+"\x00M"+text+"\x00\x00")
}

// selfSigned is a certificate that no authority vouches for.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
