//go:build unix

package localserver

import (
	"errors"
	"net/url"
	"os"
	"os/exec"
)

// StartCockroach starts one CockroachDB node that keeps its data in memory. cockroach-go's
// testserver does the same, but its server outlives a process that was killed, and it brings in a
// second driver.
func StartCockroach() (*Server, error) {
	program, err := exec.LookPath("cockroach")
	if err != nil {
		return nil, errors.New("the program cockroach is not on PATH; get it from cockroachlabs.com/docs/releases")
	}
	folder, err := ownFolder("", "omi-cockroach-", nil)
	if err != nil {
		return nil, err
	}
	addrs, err := FreeAddrs(1)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	address := &url.URL{
		Scheme: "postgres", User: url.User("root"), Host: addrs[0], Path: "/defaultdb", RawQuery: "sslmode=disable",
	}
	server, err := launch(address, folder, "KILL", nil, []string{
		program, "start-single-node", "--insecure", "--logtostderr",
		"--store=type=mem,size=0.2", "--listen-addr=" + addrs[0], "--http-addr=127.0.0.1:0",
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return server, nil
}
