package registry

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/registry/internal/ledger"
)

// The operator replaces a Master Key that leaked or was lost:
//
// 	replace-master ──▶ apps: the new key; reserved_keys: the old one, for ever
// 	                        ▲
// 	decide: by the key that was read ──▶ commit: if it is still the app's key ──▶ stands
// 	                                        └── otherwise ──▶ decided again
//
// No registry remembers a Master Key between batches, so the new one counts from the commit of its
// replacement on.

// followMasters reports each Master Key that is replaced while this registry runs, in the log and
// by a notice to all subscribers, until ctx ends. Nothing depends on either.
func (r *Registry) followMasters(ctx context.Context) {
	tick := time.NewTicker(policyEvery)
	defer tick.Stop()
	var known map[ledger.EndedMaster]bool // nil: nothing was read yet
	for {
		list, err := r.cfg.Store.admin.EndedMasters(ctx)
		if err == nil {
			for _, one := range list {
				if known != nil && !known[one] {
					r.tellReplaced(one)
				}
			}
			known = make(map[ledger.EndedMaster]bool, len(list))
			for _, one := range list {
				known[one] = true
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (r *Registry) tellReplaced(one ledger.EndedMaster) {
	r.cfg.Log.Warn("the Master Key of an app was replaced: what the old one signs is refused from now on",
		"app_id", one.App.String(), "old_public_key", one.PublicKey.String(), "public_key", one.ReplacedBy.String())
	notice := events.Notice{
		Origin: r.cfg.Policy.Origin, App: one.App, Event: events.MasterKeyReplaced,
		OldKey: one.PublicKey, NewKey: one.ReplacedBy, Timestamp: one.EndedAt,
	}
	if err := r.cfg.Conn.PublishMsg(&nats.Msg{Subject: notice.Subject(), Data: notice.Sign(r.cfg.Key)}); err != nil {
		r.cfg.Log.Debug("publish a notice", "error", err) // it is only a hint
	}
}
