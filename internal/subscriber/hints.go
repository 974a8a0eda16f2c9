package subscriber

import (
	"math/rand/v2"
	"strconv"

	"omiappreg.org/keyrotation/internal/sqldb"
)

// In SQLite, a service is found by its name, and a key's service by the key, with the help of hints: few bytes that nearly always
// name one service. Names and keys come in a random order, so in an index of a million each new one is on a page of its own,
// and each page is written twice. So the hints to what is new are in a small table, and from time to time a slice of it is moved
// to the large one, neighbours with neighbours. writeHinted leaves the hint to a new service, and a trigger that to a new key
// (schema/subscriber/sqlite).

const (
	// hintSlices is how many slices the new hints have, by their first byte.
	hintSlices = 32
	// hintsUntilMove is how many rows are written until the next slice is moved, so that one has about as many.
	hintsUntilMove = 1024
)

// hints move slices of new hints in turn. Any may be moved at any time: so nothing of this is in the database, and a process that
// is started again begins anywhere.
type hints struct {
	table   string
	slice   int
	written int // since the last move
}

func newHints(table string) *hints {
	return &hints{table, rand.IntN(hintSlices), rand.IntN(hintsUntilMove)} //nolint:gosec // it only spreads work
}

// useHints has services and keys found by hints. An Auth Provider's database has none to keys, and FindKey is slow there.
func (s *Store) useHints(owner sqldb.Owner) {
	s.serviceHints = newHints("service_hints")
	if owner != sqldb.Auth {
		s.keyHints = newHints("key_hints")
	}
}

// find returns a query of the services with the hint that is parameter n.
func (h *hints) find(n int) string {
	where := ` WHERE hint = $` + strconv.Itoa(n)
	return `SELECT service FROM ` + h.table + where + ` UNION ALL SELECT service FROM new_` + h.table + where
}

// move is told how many rows are written. It is called in the transaction that holds SQLite's one write lock, and so never beside
// itself. Nil does nothing.
func (h *hints) move(p *sqldb.Pipeline, written int) {
	if h == nil {
		return
	}
	for h.written += written; h.written >= hintsUntilMove; h.written -= hintsUntilMove {
		h.slice = (h.slice + 1) % hintSlices
		const width = 256 / hintSlices
		from := []byte{byte(h.slice * width)}
		to := []byte{byte(h.slice*width + width - 1), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		what, between := "move "+h.table, ` FROM new_`+h.table+` WHERE hint BETWEEN $1 AND $2`
		p.Exec(what, `INSERT INTO `+h.table+` (hint, service) SELECT hint, service`+between+
			` ORDER BY hint, service ON CONFLICT DO NOTHING`, []any{from, to}, nil)
		p.Exec(what, `DELETE`+between, []any{from, to}, nil)
	}
}
