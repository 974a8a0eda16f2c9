package subscriber

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"omiappreg.org/keyrotation/events"
)

// ErrUnknownService means that the registry answered, and has never bound this service.
var ErrUnknownService = errors.New("the registry does not know the service")

// Lookup asks the registry over NATS (docs/protocol.md §8), and believes only what it signed.
type Lookup struct {
	Conn  *nats.Conn
	Trust events.Trust
}

// ServiceRecord returns what the registry knows of a service now, or [ErrUnknownService].
func (l Lookup) ServiceRecord(ctx context.Context, target events.Target) (events.ServiceRecord, error) {
	document, err := l.request(ctx, events.LookupServiceSubject, target)
	if err != nil {
		return events.ServiceRecord{}, fmt.Errorf("look up the service %s: %w", target, err)
	}
	record, err := l.Trust.ServiceRecord(target, document)
	if err != nil {
		return events.ServiceRecord{}, fmt.Errorf("look up the service %s: %w", target, err)
	}
	return record, nil
}

// ServiceHistory returns every key that a service ever had, or [ErrUnknownService].
func (l Lookup) ServiceHistory(ctx context.Context, target events.Target) (events.ServiceHistory, error) {
	document, err := l.request(ctx, events.LookupHistorySubject, target)
	if err != nil {
		return events.ServiceHistory{}, fmt.Errorf("look up the history of %s: %w", target, err)
	}
	history, err := l.Trust.ServiceHistory(target, document)
	if err != nil {
		return events.ServiceHistory{}, fmt.Errorf("look up the history of %s: %w", target, err)
	}
	return history, nil
}

func (l Lookup) request(ctx context.Context, subject string, target events.Target) ([]byte, error) {
	reply, err := l.Conn.RequestWithContext(ctx, subject+target.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask the registry: %w", err)
	}
	switch code := reply.Header.Get(micro.ErrorCodeHeader); code {
	case "":
		return reply.Data, nil
	case strconv.Itoa(http.StatusNotFound):
		return nil, ErrUnknownService
	default:
		return nil, fmt.Errorf("the registry answers %s: %s", code, reply.Header.Get(micro.ErrorHeader))
	}
}
