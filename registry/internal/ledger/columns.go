package ledger

import (
	"database/sql"
	"fmt"
	"strconv"
	"strings"

	"omiappreg.org/keyrotation/events"
)

// keyColumn scans a public key. NULL is no key.
type keyColumn struct{ key *events.PublicKey }

// Scan implements sql.Scanner.
func (c keyColumn) Scan(v any) (err error) {
	switch v := v.(type) {
	case nil:
		*c.key = events.PublicKey{}
	case []byte:
		*c.key, err = events.PublicKeyFromBytes(v)
	default:
		err = fmt.Errorf("a public key can't be read from %T", v)
	}
	return err
}

// textColumn scans a value that has a text form.
type textColumn[T any] struct {
	into  *T
	parse func(string) (T, error)
}

// Scan implements sql.Scanner.
func (c textColumn[T]) Scan(v any) (err error) {
	var s string
	switch v := v.(type) {
	case string:
		s = v
	case []byte:
		s = string(v)
	default:
		return fmt.Errorf("a text can't be read from %T", v)
	}
	*c.into, err = c.parse(s)
	return err
}

func text(id *events.AppID) sql.Scanner { return textColumn[events.AppID]{id, events.ParseAppID} }

func target(t *events.Target) sql.Scanner { return textColumn[events.Target]{t, events.ParseTarget} }

func nonceText(n *events.Nonce) sql.Scanner { return textColumn[events.Nonce]{n, events.ParseNonce} }

func times(list *[]int64) sql.Scanner { return textColumn[[]int64]{list, parseTimes} }

// keyBytes returns the value of a key's column.
func keyBytes(k events.PublicKey) any {
	if k.IsZero() {
		return nil
	}
	return k.Bytes()
}

// parseTimes and formatTimes keep a few times in one column, as numbers separated by spaces.
func parseTimes(s string) ([]int64, error) {
	var list []int64
	for field := range strings.FieldsSeq(s) {
		t, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

func formatTimes(list []int64) string {
	var b []byte
	for _, t := range list {
		b = append(strconv.AppendInt(b, t, 10), ' ')
	}
	return string(b)
}
