//go:build unix

package testenv

import (
	"os"
	"testing"
)

func TestPostgresServerKeepsWhatItCommitted(t *testing.T) {
	t.Parallel()
	var folder string
	t.Run("server", func(t *testing.T) {
		p := NewPostgresServer(t)
		folder = p.folder
		proxy := NewProxy(t, p.Addr())
		address := p.CreateDatabase("kept", proxy.Addr())
		if address == "" {
			t.Fatal("no URL")
		}
		for i, stop := range []func() error{p.Crash, p.Stop} {
			own := *p.server.url
			own.Path = "/kept"
			if err := execute(&own, "CREATE TABLE t"+string(rune('a'+i))+" (n int)"); err != nil {
				t.Fatal(err)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			proxy.Retarget(p.Addr())
			own.Host = proxy.Addr()
			if err := execute(&own, "SELECT n FROM t"+string(rune('a'+i))); err != nil {
				t.Errorf("after stop %d: %v", i+1, err)
			}
		}
	})
	if _, err := os.Stat(folder); folder != "" && !os.IsNotExist(err) {
		t.Errorf("its folder is left: %v", err)
	}
}
