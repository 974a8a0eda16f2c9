package subscriber

import (
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/incoming"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/subscriber/storage"
)

const unknownKeyDetail = "It is an event of this registry, but by a key that is not trusted"

// verify splits a batch into what is to be applied and what is not, and says which events processes
// that trust others may believe.
func (s *Subscriber) verify(batch []incoming.Delivery) (incoming.Sorted, unbelieved) {
	trust := s.Trust()
	sorted := incoming.Sort(trust, batch)
	var u unbelieved
	for i, r := range sorted.Refused {
		switch r.Reason {
		case events.UntrustedSignature:
			keyID, looks := trust.OfUnknownKey(r.Subject, r.Payload)
			if !looks {
				continue
			}
			detail := unknownKeyDetail + "."
			if keyID != "" {
				detail = unknownKeyDetail + ": key_id " + printable.Text(keyID) + "."
			}
			sorted.Refused[i].Refusal = &events.Refusal{Reason: storage.UnknownKey, Detail: detail}
		case events.EndedRegistryKey, events.WrongOrigin: // signed by a key that is or was trusted
		default:
			continue
		}
		if u.from == 0 || r.Sequence < u.from {
			u = unbelieved{r.Sequence, trust.Announcement()}
		}
	}
	return sorted, u
}
