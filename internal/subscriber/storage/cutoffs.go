package storage

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"

	"omiappreg.org/keyrotation/keyring"
)

// cutoffs are the cutoffs of all services in the order of their ids, packed, because each of a
// million services may have been reset or revoked. Each has the service's id, the order, and the
// time.
type cutoffs struct{ chunks [][]byte }

const cutoffChunk = 1 << 16

// readCutoffs reads the cutoffs of all services.
func readCutoffs(ctx context.Context, tx *sql.Tx) (*cutoffs, error) {
	rows, err := tx.QueryContext(ctx, `SELECT service, position, cut_time FROM cutoffs ORDER BY service`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	all := &cutoffs{}
	var row struct{ service, order, time number }
	for rows.Next() {
		if err := rows.Scan(&row.service, &row.order, &row.time); err != nil {
			return nil, err
		}
		all.add(int64(row.service), keyring.Cutoff{Order: int64(row.order), Time: int64(row.time)})
	}
	return all, rows.Err()
}

func (c *cutoffs) add(service int64, cutoff keyring.Cutoff) {
	last := len(c.chunks) - 1
	if last < 0 || cap(c.chunks[last])-len(c.chunks[last]) < 3*binary.MaxVarintLen64 {
		c.chunks = append(c.chunks, make([]byte, 0, cutoffChunk))
		last++
	}
	b := binary.AppendVarint(c.chunks[last], service)
	c.chunks[last] = binary.AppendVarint(binary.AppendVarint(b, cutoff.Order), cutoff.Time)
}

// dequeue removes and returns the cutoffs of a service. Services must come in the order of their
// ids.
func (c *cutoffs) dequeue(service int64) (list []keyring.Cutoff) {
	for len(c.chunks) > 0 {
		have, rest := nextNumber(c.chunks[0])
		if have != service {
			break
		}
		var one keyring.Cutoff
		one.Order, rest = nextNumber(rest)
		one.Time, rest = nextNumber(rest)
		list = append(list, one)
		if c.chunks[0] = rest; len(rest) == 0 {
			c.chunks[0] = nil
			c.chunks = c.chunks[1:]
		}
	}
	return list
}

func nextNumber(b []byte) (number int64, rest []byte) {
	number, n := binary.Varint(b)
	return number, b[n:]
}

// checkEmpty fails if some cutoffs are left, because their services are missing or out of
// order. Without its cutoffs, a key that was reset would look good.
func (c *cutoffs) checkEmpty() error {
	if len(c.chunks) == 0 {
		return nil
	}
	service, _ := nextNumber(c.chunks[0])
	return fmt.Errorf("a cutoff of the service with id %d has no service, or comes in another order than the services", service)
}
