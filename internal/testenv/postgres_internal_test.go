package testenv

import (
	"net/url"
	"os"
	"testing"
)

func TestPostgresServerKeepsWhatItCommitted(t *testing.T) {
	t.Parallel()
	var p *PostgresServer
	t.Cleanup(func() { // runs after that of the server
		if p == nil {
			return // skipped
		}
		if _, err := os.Stat(p.Folder()); !os.IsNotExist(err) {
			t.Errorf("its folder is left: %v", err)
		}
	})
	p = NewPostgresServer(t)
	way := NewProxy(t, p.Addr())
	database, err := url.Parse(p.CreateDatabase("kept", way.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	for table, stop := range map[string]func() error{"crashed": p.Crash, "halted": p.Halt} {
		if err := execute(database, "CREATE TABLE "+table+" (n int)"); err != nil {
			t.Fatal(err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		way.Retarget(p.Addr())
		if err := execute(database, "SELECT n FROM "+table); err != nil {
			t.Errorf("%s, and started again: %v", table, err)
		}
	}
}
