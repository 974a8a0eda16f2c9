package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/process"
)

type statusCmd struct {
	connection  `embed:""`
	targetFlags `embed:""`
}

// Run shows a service's record.
func (c *statusCmd) Run() error {
	t, err := c.target()
	if err != nil {
		return err
	}
	return c.withSession(c.Timeout, func(ctx context.Context, s *session) error {
		record, err := s.record(ctx, t)
		if err != nil {
			return err
		}
		if c.JSON {
			return process.PrintJSON(record)
		}
		printRecord(record)
		return nil
	})
}

// record asks the registry for a service's record, and believes only its signature.
func (s *session) record(ctx context.Context, t events.Target) (events.ServiceRecord, error) {
	reply, err := s.ask(ctx, events.LookupServiceSubject+t.String(), nil)
	if err != nil {
		return events.ServiceRecord{}, err
	}
	record, err := s.trust.ServiceRecord(t, reply.Data)
	if err != nil {
		return events.ServiceRecord{}, fmt.Errorf("the registry's record of %s: %w", t, err)
	}
	return record, nil
}

func printRecord(r events.ServiceRecord) {
	fmt.Printf("%s.%s: %s, sequence %d, bound since %s\n", r.AppID, r.ServiceID, r.Status, r.Sequence, date(r.BoundAt))
	if !r.Current.PublicKey.IsZero() {
		fmt.Printf("  current    %s  since %s\n", r.Current.PublicKey, date(r.Current.Since))
	}
	for _, key := range r.Grace {
		fmt.Printf("  in grace   %s  %s left\n", key.PublicKey, time.Duration(key.Expires-r.Timestamp)*time.Second)
	}
	for _, durable := range slices.Sorted(maps.Keys(r.Propagation)) {
		heard := "has not applied the last change yet"
		if r.Propagation[durable] {
			heard = "has applied the last change"
		}
		fmt.Printf("  %-10s %s\n", durable, heard)
	}
	for _, line := range [][2]string{{"type", r.ServiceType}, {"endpoint", r.EndpointURL}} {
		if line[1] != "" {
			fmt.Printf("  %-10s %s\n", line[0], line[1])
		}
	}
}

func date(seconds int64) string {
	at := time.Unix(seconds, 0)
	return at.Format(cmp.Or(map[bool]string{true: time.TimeOnly}[time.Since(at) < 12*time.Hour], time.DateTime))
}
