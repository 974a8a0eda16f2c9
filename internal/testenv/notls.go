package testenv

import (
	"io"
	"net"
	"testing"
)

// NewServerWithoutTLS returns the address of a server that refuses PostgreSQL's request for TLS,
// and then closes the connection.
func NewServerWithoutTLS(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadFull(conn, make([]byte, 8))
			_, _ = io.WriteString(conn, "N")
			_ = conn.Close()
		}
	}()
	return listener.Addr().String()
}
