package decision

import "omiappreg.org/keyrotation/events"

// commit moves the service, and makes the event and the receipt that announce it.
func (d *decider) commit(in Incoming) Outcome {
	r := in.Request
	event := events.Invalidation{
		Origin: d.Rules.Origin, Target: d.target, Event: r.Kind.Event(),
		OldKey: d.service.Key, NewKey: r.NewKey,
		// This replica's clock may be behind the clock that made the last change. Time never runs
		// backwards within one service.
		Timestamp: max(d.now, d.service.ChangedAt),
		Nonce:     d.NewNonce(), Sequence: d.service.Sequence + 1, EndEarlier: r.EndEarlier,
	}
	event.GracePeriodExpiry = event.Timestamp
	switch {
	case r.Kind == events.Rotation && r.HasGracePeriod:
		event.GracePeriodExpiry += r.GracePeriod
	case r.Kind == events.Rotation:
		event.GracePeriodExpiry += d.Rules.Grace
	}
	receipt := events.Receipt{
		Origin: d.Rules.Origin, Target: d.target, Event: events.RequestCommitted,
		RequestNonce: r.Nonce, Timestamp: event.Timestamp, Nonce: d.NewNonce(),
		Sequence: event.Sequence, PublicKey: r.NewKey, GracePeriodExpiry: event.GracePeriodExpiry, EventNonce: event.Nonce,
	}
	o := Outcome{
		In: in, Verdict: Committed, Event: event, EventBytes: event.Sign(d.Key),
		ReceiptNonce: receipt.Nonce, ReceiptBytes: receipt.Sign(d.Key),
	}
	d.move(in, &o)
	return o
}

// move changes the service as the event says.
func (d *decider) move(in Incoming, o *Outcome) {
	r, s := in.Request, &d.service
	d.committedHere = append(d.committedHere, committedRequest{r.Nonce, Prior{r.Digest(), o.ReceiptNonce, o.ReceiptBytes, o.Event.Event, r.NewKey}})
	if !s.Key.IsZero() {
		d.earlierKeys = append(d.earlierKeys, PastKey{s.Key, s.Sequence})
	}
	s.Status, s.Sequence, s.Key, s.ChangedAt = events.Active, o.Event.Sequence, r.NewKey, o.Event.Timestamp
	s.Place = s.Place.after(in.Place)
	if r.Kind.ByMasterKey() {
		s.SignedAt = r.Timestamp
	}
	switch r.Kind {
	case events.Rotation:
		s.Recent = d.Rules.counted(s.Recent, in.StoredAt)
	case events.Revocation:
		s.Status, d.details.ProviderReceipt = events.Revoked, new(string(r.ProviderReceipt))
		return
	case events.Binding:
		d.details = NewDetails{new(o.Event.Timestamp), &r.ServiceType, &r.EndpointURL, new("")}
	case events.Reset:
		if r.ServiceType != "" {
			d.details.ServiceType = &r.ServiceType
		}
		if r.EndpointURL != "" {
			d.details.EndpointURL = &r.EndpointURL
		}
	}
	d.claimed = append(d.claimed, r.NewKey)
}

// withRecent returns the times of a minute with one more, without those that are over by then.
func withRecent(times []int64, at int64) []int64 {
	recent := make([]int64, 0, len(times)+1)
	for _, t := range times {
		if t > at-minuteSeconds {
			recent = append(recent, t)
		}
	}
	return append(recent, at)
}

// Follow moves a service as an event says. Details that the event doesn't have stay empty.
func (g *Group) Follow(e *events.Invalidation) {
	s := &g.Service
	s.Status, s.Sequence, s.Key, s.ChangedAt = events.Active, e.Sequence, e.NewKey, e.Timestamp
	switch e.Event {
	case events.KeyRotation: // the time of the commit stands for that of the request
		s.Recent = withRecent(s.Recent, e.Timestamp)
	case events.ServiceRevocation:
		s.Status = events.Revoked
	case events.ServiceBinding:
		g.Details = NewDetails{new(e.Timestamp), new(""), new(""), new("")}
	case events.MasterReset:
	}
}
