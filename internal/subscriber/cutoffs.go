package subscriber

import (
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"

	"omiappreg.org/keyrotation/keyring"
)

// cutoffs are those of all services in the order of their targets, packed: each of a million services may have been reset or
// revoked. Each is the length of the target, the target, the order, and the time.
type cutoffs struct{ chunks [][]byte }

const cutoffChunk = 1 << 16

// readCutoffs reads those of all services.
func readCutoffs(ctx context.Context, tx *sql.Tx) (*cutoffs, error) {
	rows, err := tx.QueryContext(ctx, `SELECT target, position, cut_time FROM cutoffs ORDER BY target`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	all := &cutoffs{}
	var row struct {
		target      sql.RawBytes
		order, time number
	}
	for rows.Next() {
		if err := rows.Scan(&row.target, &row.order, &row.time); err != nil {
			return nil, err
		}
		all.add(row.target, keyring.Cutoff{Order: int64(row.order), Time: int64(row.time)})
	}
	return all, rows.Err()
}

func (c *cutoffs) add(target []byte, cutoff keyring.Cutoff) {
	most := len(target) + 3*binary.MaxVarintLen64
	last := len(c.chunks) - 1
	if last < 0 || cap(c.chunks[last])-len(c.chunks[last]) < most {
		c.chunks = append(c.chunks, make([]byte, 0, max(cutoffChunk, most)))
		last++
	}
	b := append(binary.AppendUvarint(c.chunks[last], uint64(len(target))), target...)
	c.chunks[last] = binary.AppendVarint(binary.AppendVarint(b, cutoff.Order), cutoff.Time)
}

// take returns those of a service, which are asked for in the order in which they are here. They are then gone.
func (c *cutoffs) take(target string) (list []keyring.Cutoff) {
	for len(c.chunks) > 0 {
		have, rest := nextTarget(c.chunks[0])
		if string(have) != target {
			break
		}
		var (
			one keyring.Cutoff
			n   int
		)
		one.Order, n = binary.Varint(rest)
		rest = rest[n:]
		one.Time, n = binary.Varint(rest)
		list = append(list, one)
		if c.chunks[0] = rest[n:]; len(c.chunks[0]) == 0 {
			c.chunks[0] = nil
			c.chunks = c.chunks[1:]
		}
	}
	return list
}

func nextTarget(b []byte) (target, rest []byte) {
	length, n := binary.Uvarint(b)
	return b[n:][:length], b[n:][length:]
}

// allTaken fails where some were not asked for, or not in their order: without them, a key that was reset would look good.
func (c *cutoffs) allTaken() error {
	if len(c.chunks) == 0 {
		return nil
	}
	target, _ := nextTarget(c.chunks[0])
	return fmt.Errorf("a cutoff of %q has no service, or comes in another order than the services", target)
}
