package registry

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
)

// Key returns whose key this is (docs/protocol.md §8.6). It fails as [Lookup.Service] does. Its
// cost doesn't depend on the length of the service's history.
func (l *Lookup) Key(ctx context.Context, key events.PublicKey) (events.KeyRecord, error) {
	record := events.KeyRecord{Origin: l.policy.Load().Origin, PublicKey: key, Timestamp: l.now().Unix()}
	t, sequence, err := l.store.ledger.Owner(ctx, key)
	if errors.Is(err, sql.ErrNoRows) {
		return record, l.guard.AnswersNoKey(key)
	}
	if err != nil {
		return record, fmt.Errorf("look for a key: %w", err)
	}
	s, err := l.store.ledger.Service(ctx, t)
	if err := l.mayAnswer(err, t, func() int64 { return s.Sequence }); err != nil {
		return record, err
	}
	lines, _, err := l.store.ledger.Lines(ctx, &s.Service, sequence-1, 1)
	if err != nil || len(lines) == 0 || lines[0].PublicKey != key {
		return record, fmt.Errorf("read the change of %s that brought a key: %w", t, errors.Join(err, sql.ErrNoRows))
	}
	line := &lines[0]
	record.AppID, record.ServiceID = t.App, t.Service
	record.Event, record.Sequence, record.From, record.Until = line.Event, line.Sequence, line.From, line.Until
	return record, nil
}

func (l *Lookup) serveKey(ctx context.Context, c api.Call) (api.Answer, error) {
	key, err := events.ParsePublicKey(c.PublicKey)
	if c.PublicKey == "" {
		key, err = events.ParseKeyQuery(c.Body)
	} else if err != nil {
		err = api.BadRequest(events.InvalidField, err.Error())
	}
	if err != nil {
		return api.Answer{}, err
	}
	record, err := l.Key(ctx, key)
	if err != nil {
		return api.Answer{}, toCaller(err)
	}
	return api.Answer{Body: record.Sign(l.key)}, nil
}
