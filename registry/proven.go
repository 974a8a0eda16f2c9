package registry

import "omiappreg.org/keyrotation/events"

// A key that has been announced can be claimed by anyone who has heard of it, where the policy asks for no proof. So of what was
// handed over together, a request that proves that it has the new key wins over other services' requests for that key without
// a proof, whichever the stream stored first. It does not have to stand for that: its proof shows whose key it is.
//
// What another replica or an earlier pull decides is decided: a claim without proof that was committed stands.

// markOutproved marks the requests without a proof whose key another service's request proves to have.
func markOutproved(list []incoming, origin string) {
	bare := map[events.PublicKey]bool{} // keys that are asked for without a proof
	for i := range list {
		if r := list[i].request; asksForKey(&list[i]) && r.Proof.IsZero() {
			bare[r.NewKey] = true
		}
	}
	if len(bare) == 0 {
		return // nearly always
	}
	proven := map[events.PublicKey][]events.Target{}
	for i := range list {
		if r := list[i].request; asksForKey(&list[i]) && bare[r.NewKey] && proves(r, origin) {
			proven[r.NewKey] = append(proven[r.NewKey], r.Target)
		}
	}
	for i := range list {
		if r := list[i].request; asksForKey(&list[i]) && r.Proof.IsZero() {
			for _, by := range proven[r.NewKey] {
				list[i].outproved = list[i].outproved || by != r.Target
			}
		}
	}
}

func asksForKey(in *incoming) bool {
	return in.request != nil && in.refusal == nil && !in.request.NewKey.IsZero()
}

// proves reports whether a request shows that the holder of the new key wants it for this service. A proof over data that does not
// name the service shows nothing: anybody can sign the same data for another one.
func proves(r *events.Request, origin string) bool {
	return !r.App.IsZero() && !r.Service.IsZero() && r.NamesItsTarget() && r.IsFor(origin) &&
		!r.Proof.IsZero() && r.NewKey.Verify(r.Signed, r.Proof)
}
