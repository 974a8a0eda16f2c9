package sqldb

import (
	"net"
	"slices"
	"strconv"
	"strings"
)

// Place names the database for the log: its engine, and its file or its servers. It has no
// credentials.
func (db *DB) Place() string {
	if db.file != "" {
		return string(db.engine) + " " + db.file
	}
	return string(db.engine) + " " + db.servers
}

// serversOf returns the hosts that a server's URL names, and the database there.
func serversOf(url string) string {
	cfg, err := parseServer(url)
	if err != nil {
		return "" // it was opened, so it could be read
	}
	address := func(host string, port uint16) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
	servers := []string{address(cfg.Host, cfg.Port)}
	for _, other := range cfg.Fallbacks { // each host may be there twice, with TLS and without
		servers = append(servers, address(other.Host, other.Port))
	}
	slices.Sort(servers)
	return strings.Join(slices.Compact(servers), ",") + "/" + cfg.Database
}
