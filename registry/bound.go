package registry

import (
	"context"
	"fmt"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/registry/internal/decision"
)

// boundOf finds services by the unique index of services (target).
func boundOf(e sqldb.Engine) string {
	return "SELECT target FROM (%s) AS v " + e.LookupJoin() + " services ON target = v.column1"
}

// bound returns those of the services that were ever bound.
func (s *Store) bound(ctx context.Context, services []events.Target) (bound []events.Target, err error) {
	w := newWantedServices(len(services))
	for _, t := range services {
		w.service(t)
	}
	err = s.eachPartAgain(ctx, boundOf(s.db.Engine()), []sqldb.Type{sqldb.Text}, w.names, func(row sqldb.Row) error {
		var name string
		err := row.Scan(&name)
		bound = append(bound, w.targets[name])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask which services are bound: %w", err)
	}
	return bound, nil
}

// masterKeys returns the Master Keys of the apps that exist.
func (s *Store) masterKeys(ctx context.Context, apps []events.AppID) (map[events.AppID]events.PublicKey, error) {
	st, w, seen := decision.NewState(), newWantedServices(0), map[events.AppID]bool{}
	for _, app := range apps {
		if decision.Once(seen, app) {
			w.apps = append(w.apps, app.String())
		}
	}
	if err := s.loadApps(ctx, w, st); err != nil {
		return nil, fmt.Errorf("ask for the apps of bindings: %w", err)
	}
	return st.Masters, nil
}
