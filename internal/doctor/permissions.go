package doctor

import (
	"context"
	"strconv"
	"strings"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
	"omiappreg.org/keyrotation/streams"
)

// nobodysTarget replaces the target if no service is named. No service has it, and nothing is
// stored on it.
const nobodysTarget = "omi.doctor.probe"

// examinePermissions tries what this account may do at the broker.
func (d *doctor) examinePermissions(ctx context.Context) {
	target := nobodysTarget
	if d.named {
		target = d.target.String()
		asDeveloper := d.flags.MasterKey != ""
		// The accounts of developers, and of operators, who see the streams, need not rotate; a
		// service's need not bind.
		asService := d.flags.Key != "" || !asDeveloper && len(d.streams) == 0
		d.mayRequest(ctx, "rotation", events.RotationSubject+target, asService)
		d.mayRequest(ctx, "binding", events.BindingSubject+target, asDeveloper)
		d.mayRequest(ctx, "revocation", events.RevocationSubject+target, asDeveloper)
		d.mayRead(ctx, asService || asDeveloper)
	}
	d.mayForge(ctx, "invalidations", events.InvalidationSubject+target, streams.Invalidations)
	d.mayForge(ctx, "receipts", events.ReceiptSubject+target, streams.Receipts)
}

func (d *doctor) mayRequest(ctx context.Context, class, subject string, needed bool) {
	name := "publish " + class
	may, err := d.mayPublish(ctx, subject, streams.Requests)
	switch {
	case err != nil:
		d.warn(name, "not known: "+err.Error(), "see the stream "+streams.Requests+" above")
	case may:
		d.ok(name, "allowed")
	case needed:
		d.wrong(name, "this account may not publish to "+subject, "allow that subject in its publish permissions")
	default:
		d.ok(name, "not allowed, and not needed here")
	}
}

// mayRead tries to get receipts as a command does that waits for its answer: by listening, and by
// asking for one that it missed.
func (d *doctor) mayRead(ctx context.Context, needed bool) {
	const name = "read receipts"
	hears, last := events.AnswerSubject+d.target.String(), registryclient.LastReceiptSubject+d.target.String()
	subscription, err := d.Conn.SubscribeSync(hears)
	if err == nil {
		defer func() { _ = subscription.Unsubscribe() }() // the connection ends soon
		err = d.Conn.FlushTimeout(d.flags.Timeout)
	}
	if heard := d.Conn.LastError(); session.Denied(heard) && strings.Contains(heard.Error(), strconv.Quote(hears)) {
		err = heard
	}
	if err == nil {
		err = d.within(ctx, last, func(ctx context.Context) error {
			_, err := d.Conn.RequestWithContext(ctx, last, nil)
			return err
		})
	}
	switch {
	case err == nil:
		d.ok(name, "allowed")
	case session.Denied(err) && !needed:
		d.ok(name, "not allowed, and not needed here")
	case session.Denied(err):
		d.wrong(name, "this account can't get the registry's answers: "+err.Error(), "let it subscribe to "+hears+" and publish to "+last)
	default:
		d.warn(name, "not known: "+err.Error(), "see the stream "+streams.Receipts+" above")
	}
}

// mayForge tries what only the registry should be able to do.
func (d *doctor) mayForge(ctx context.Context, class, subject, stream string) {
	name := "publish " + class
	may, err := d.mayPublish(ctx, subject, stream)
	switch {
	case err != nil:
		d.warn(name, "not known: "+err.Error(), "see the stream "+stream+" above")
	case may:
		d.warn(name, "this account may publish what only the registry should: no false message is believed, but it can "+
			"push out some of the 64 messages that are kept", "deny omi.v1."+class+".> to every account but the registry's")
	default:
		d.ok(name, "not allowed, as it should be")
	}
}
