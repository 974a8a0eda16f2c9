package ledger

import (
	"context"
	"fmt"
	"strings"

	"omiappreg.org/keyrotation/internal/sqldb"
)

// Setting is one value of a policy.
type Setting struct{ Name, Value string }

// Policy reads the recorded policy.
func (s *Admin) Policy(ctx context.Context) (map[string]string, error) {
	recorded := map[string]string{}
	err := s.db.Read(ctx, func() error {
		return s.each(ctx, "SELECT name, value FROM policy", nil, func(row sqldb.Row) error {
			var name, value string
			err := row.Scan(&name, &value)
			recorded[name] = value
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	return recorded, nil
}

// RecordPolicy records the settings that are not recorded yet, in one statement: if two replicas
// start at once, one of them is first. With change, it records all settings.
func (s *Admin) RecordPolicy(ctx context.Context, settings []Setting, change bool) error {
	then := "NOTHING"
	if change {
		then = "UPDATE SET value = excluded.value"
	}
	places, values := make([]string, len(settings)), make([]any, 0, 2*len(settings))
	for i, one := range settings {
		places[i] = fmt.Sprintf("($%d, $%d)", 2*i+1, 2*i+2)
		values = append(values, one.Name, one.Value)
	}
	query := "INSERT INTO policy (name, value) VALUES " + strings.Join(places, ", ") + " ON CONFLICT (name) DO " + then
	if err := s.db.InTx(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, query, values...)
		return err
	}); err != nil {
		return fmt.Errorf("record the policy: %w", err)
	}
	return nil
}
