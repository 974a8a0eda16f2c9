// Package localserver starts a database server from the programs of this machine, for as long as
// this process runs: for tests, and for `omi bench`. It downloads nothing, and leaves nothing
// behind.
package localserver

// PostgresConfig configures a PostgreSQL server.
type PostgresConfig struct {
	// Durable keeps the default settings: a commit is on the disk when it returns. Otherwise the
	// server is quick, and would lose everything in a power cut.
	Durable bool
	// Restarts lets commits survive a stop or a crash of the server, but not of the machine.
	Restarts bool
	// Parent is the folder for the server's files while it runs. The default is the folder for
	// temporary files.
	Parent string
}
