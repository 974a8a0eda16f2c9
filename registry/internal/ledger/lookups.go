package ledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// Errors of a question about what the database does not have.
var (
	ErrUnknownService = errors.New("unknown service")
	ErrNoReceipt      = errors.New("no receipt of this request")
)

// Record is everything that the database keeps of a service.
type Record struct {
	decision.Service
	decision.Details
}

// service reads one service, or returns [ErrUnknownService].
func (s *Ledger) Service(ctx context.Context, t events.Target) (*Record, error) {
	var one Record
	const query = "SELECT " + serviceColumns + ", bound_at, service_type, endpoint_url, provider_receipt FROM services WHERE target = $1"
	err := s.db.QueryRow(ctx, query, t.String()).
		Scan(append(columnsOf(&one.Service), &one.BoundAt, &one.ServiceType, &one.EndpointURL, &one.ProviderReceipt)...)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrUnknownService
	}
	if err != nil {
		return nil, fmt.Errorf("read the service %s: %w", t, err)
	}
	return &one, nil
}

// owner returns the service that has or had a key, and the sequence that brought the key, or
// [sql.ErrNoRows].
func (s *Ledger) Owner(ctx context.Context, key events.PublicKey) (t events.Target, sequence int64, err error) {
	const query = `SELECT s.target, h.sequence FROM history h JOIN services s ON s.id = h.service
		WHERE h.public_key = $1`
	err = s.db.QueryRow(ctx, query, key.Bytes()).Scan(target(&t), &sequence)
	return t, sequence, err
}

// receipt reads the receipt of a committed request, or returns [ErrNoReceipt].
func (s *Ledger) Receipt(ctx context.Context, t events.Target, nonce events.Nonce) (receipt []byte, err error) {
	const query = "SELECT receipt FROM history WHERE service = (SELECT id FROM services WHERE target = $1) AND request_nonce = $2"
	err = s.db.QueryRow(ctx, query, t.String(), nonce.String()).Scan(&receipt)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNoReceipt
	}
	if err != nil {
		return nil, fmt.Errorf("read the receipt of a request of %s: %w", t, err)
	}
	return receipt, nil
}
