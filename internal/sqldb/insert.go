package sqldb

// By default, SQLite copies each page that a statement of many rows changes, so that it could undo
// this statement alone. [DB.InTx] rolls back the whole transaction after an error, so "OR FAIL"
// spares it the copies. Nothing is different on a server.

// Insert returns the engine's words for the INSERT of many rows in a transaction of [DB.InTx].
func (e Engine) Insert() string { return e.orFail("INSERT") }

// Update returns the engine's words for the UPDATE of many rows in a transaction of [DB.InTx].
func (e Engine) Update() string { return e.orFail("UPDATE") }

func (e Engine) orFail(verb string) string {
	if e == SQLite {
		return verb + " OR FAIL"
	}
	return verb
}
