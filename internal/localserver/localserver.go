// Package localserver starts a database server from the programs that this machine has, for as long as this process runs: for
// tests, and for `omi bench`. Nothing is downloaded, and nothing stays.
package localserver

// PostgresConfig says what a PostgreSQL server is for.
type PostgresConfig struct {
	// Durable keeps its settings as they are delivered: a commit is on the disk when it returns. Otherwise it is quick, and
	// would lose everything with the power.
	Durable bool
	// Restarts lets what was committed survive a stop or crash of the server, if not one of the machine.
	Restarts bool
	// Parent is the folder in which its files are for as long as it runs. Default: the folder for temporary files.
	Parent string
}
