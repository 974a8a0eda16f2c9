package events

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// TrustedKey is a key of the registry that is believed until its end.
type TrustedKey struct {
	PublicKey PublicKey
	End       End
}

// End tells from when on a key is no longer believed. A key gets an end when it was stolen. The
// zero value means no end.
//
// The signer can write any timestamp, so an event is judged by the time at which JetStream stored
// it, and by its place in the stream. A place alone would not suffice: a stream that is created
// again counts from 1.
type End struct {
	Time  int64  // seconds since the Unix epoch: messages stored then or later are not believed
	Place uint64 // nor are events after this place in the stream; 0: only the time counts
}

// ErrTrustedKey means that a text is not a trusted key.
var ErrTrustedKey = errors.New("a trusted key is written ed25519:…, with its end ed25519:…@TIME, or ed25519:…@TIME/PLACE; " +
	"TIME is RFC 3339 (2026-12-01T10:00:00Z) or seconds since the Unix epoch, PLACE the last sequence in the stream of events that counts")

// ParseTrustedKey reads the text of a trusted key, with its end if it has one. It fails with
// [ErrPublicKey] or [ErrTrustedKey].
func ParseTrustedKey(s string) (TrustedKey, error) {
	name, end, ends := strings.Cut(s, "@")
	key, err := ParsePublicKey(name)
	if err != nil || !ends {
		return TrustedKey{PublicKey: key}, err
	}
	e, err := parseEnd(end)
	return TrustedKey{key, e}, err
}

func parseEnd(s string) (End, error) {
	at, place, hasPlace := strings.Cut(s, "/")
	var e End
	var err error
	if e.Time, err = strconv.ParseInt(at, 10, 64); err != nil {
		var t time.Time
		if t, err = time.Parse(time.RFC3339, at); err == nil {
			e.Time = t.Unix() // rounded down, so that the key ends no later than given
		}
	}
	if err == nil && hasPlace {
		e.Place, err = strconv.ParseUint(place, 10, 64)
	}
	if err != nil || e.Time <= 0 || e.Time > MaxSafeInteger || hasPlace && e.Place == 0 {
		return End{}, fmt.Errorf("the end %q: %w", s, ErrTrustedKey)
	}
	return e, nil
}

// String returns the key in the form that [ParseTrustedKey] reads.
func (k TrustedKey) String() string { return k.PublicKey.String() + k.End.suffix() }

// suffix returns the text that follows a key with this end.
func (e End) suffix() string {
	switch {
	case e == End{}:
		return ""
	case e.Place == 0:
		return fmt.Sprintf("@%d", e.Time)
	}
	return fmt.Sprintf("@%d/%d", e.Time, e.Place)
}

// before reports whether this moment comes before the end.
func (e End) before(m moment) bool {
	if e == (End{}) {
		return true
	}
	return m.time().Before(time.Unix(e.Time, 0)) && (e.Place == 0 || m.place <= e.Place)
}

// earlier returns an end that allows no more than either of the two.
func (e End) earlier(o End) End {
	switch {
	case e == End{}:
		return o
	case o == End{}:
		return e
	}
	e.Time = min(e.Time, o.Time)
	if e.Place == 0 || o.Place != 0 && o.Place < e.Place {
		e.Place = o.Place
	}
	return e
}

// moment is when JetStream stored a message, and where in the stream of events. The zero value
// means now: an answer, or a message received as it is published, has no place that its reader
// knows.
type moment struct {
	stored time.Time
	place  uint64
}

func (m moment) time() time.Time {
	if m.stored.IsZero() {
		return time.Now()
	}
	return m.stored
}
