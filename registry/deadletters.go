package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"
	"unicode/utf8"

	"omiappreg.org/keyrotation/internal/consume"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/registry/internal/ledger"
	"omiappreg.org/keyrotation/registry/internal/queue"
)

const (
	idBytes     = 8
	detailBytes = 1000 // of what a panic or an error says
)

// newDeadLetter returns what is kept of a message. Its id is a hash, so that the rows of a day
// spread over a cluster. A message that is delivered again after it was set aside is the same row.
// One at the same place of another stream is not.
func newDeadLetter(m *queue.Message, why consume.Fault, now time.Time) ledger.DeadLetter {
	name := fmt.Sprintf("%d %d %s ", m.Stored.UnixNano(), m.Sequence, m.Subject)
	hash := sha256.Sum256(append([]byte(name), m.Data...))
	return ledger.DeadLetter{
		StreamCreatedAt: m.Payload.Place.Stream,
		ID:              hex.EncodeToString(hash[:idBytes]), Subject: printable.Text(m.Subject), StreamSequence: m.Sequence,
		StoredAt: m.Stored.Unix(), Reason: why.Reason, Detail: detailOf(why.Detail), Tries: why.Tries,
		SetAsideAt: now.Unix(), Payload: m.Data,
	}
}

func detailOf(text string) string {
	if len(text) > detailBytes {
		end := detailBytes
		for !utf8.RuneStart(text[end]) {
			end--
		}
		text = text[:end] + "…"
	}
	return printable.Text(text)
}
