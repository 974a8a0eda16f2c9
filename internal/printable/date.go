package printable

import "time"

// Today is how far a time may be from now to be shown without its day.
const Today = 12 * time.Hour

// Date returns a time, in seconds since the Unix epoch, for people: without its day if it is near.
func Date(seconds int64) string {
	at := time.Unix(seconds, 0)
	if time.Since(at).Abs() < Today {
		return at.Format(time.TimeOnly)
	}
	return at.Format(time.DateTime)
}
