package decision

import (
	"slices"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/keyring"
)

// HistoryLines returns the lines of the first changes. Their ends come from all changes.
func HistoryLines(changes []events.Invalidation, first int) []events.HistoryKey {
	lines := make([]events.HistoryKey, 0, first)
	// The end of the key before the one at hand, and of all keys.
	end, cut := keyring.NoEnd, keyring.NoEnd
	for i := len(changes) - 1; i >= 0; i-- {
		e := &changes[i]
		if i < first && !e.NewKey.IsZero() {
			line := events.HistoryKey{PublicKey: e.NewKey, Event: e.Event, Sequence: e.Sequence, From: e.Timestamp}
			if until := min(end, cut); until != keyring.NoEnd {
				line.Until = &until
			}
			lines = append(lines, line)
		}
		if end = e.GracePeriodExpiry; e.EndsEarlierKeys() {
			cut = min(cut, e.Timestamp)
		}
	}
	slices.Reverse(lines)
	return lines
}
