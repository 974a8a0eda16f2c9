package localserver_test

import (
	"net"
	"strconv"
	"testing"

	"omiappreg.org/keyrotation/internal/localserver"
)

// TestFreeAddrs: each has another port, which is free, and which a listener on port 0 doesn't get.
func TestFreeAddrs(t *testing.T) {
	t.Parallel()
	addrs, err := localserver.FreeAddrs(500)
	if err != nil || len(addrs) != 500 {
		t.Fatalf("%d addresses: %v", len(addrs), err)
	}
	seen := map[string]bool{}
	for _, addr := range addrs {
		_, text, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		if port, err := strconv.Atoi(text); err != nil || port < 1024 || port >= 32768 || seen[addr] {
			t.Errorf("%s: %v; it comes twice: %t", addr, err, seen[addr])
		}
		seen[addr] = true
	}
	l, err := net.Listen("tcp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}
