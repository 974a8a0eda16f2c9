package main

import (
	"github.com/dustin/go-humanize"

	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/registry"
)

// streamFlags limit the streams.
type streamFlags struct {
	MaxWaiting      int64     `env:"OMI_MAX_WAITING" placeholder:"128" help:"How many requests of one kind may wait for one service (128)."`
	MaxRequestBytes streamLen `env:"OMI_MAX_REQUEST_BYTES" placeholder:"1GiB" help:"Size of the stream of requests (1GiB, or less at a small broker)."`
	MaxReceiptBytes streamLen `env:"OMI_MAX_RECEIPT_BYTES" placeholder:"1GiB" help:"Size of the stream of receipts; the oldest are deleted (the same)."`
	MaxEventBytes   streamLen `env:"OMI_MAX_EVENT_BYTES" placeholder:"64GiB" help:"Size of the stream of events (only the broker's own limit)."`
}

// streamLen is a number of bytes, such as 64MiB.
type streamLen int64

// leastStream is enough for a few messages of any size.
const leastStream = 1 << 20

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *streamLen) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || n < leastStream || n > 1<<62 {
		return process.Usagef("a size is a number such as 64MiB or 2GB, and 1MiB or more, not %q", text)
	}
	*l = streamLen(n)
	return nil
}

// check refuses what NATS would refuse.
func (f *streamFlags) check() error {
	if f.MaxWaiting < 0 {
		return process.Usagef("--max-waiting is 1 or more requests")
	}
	return nil
}

func (f *streamFlags) limits() registry.StreamLimits {
	return registry.StreamLimits{
		Waiting: f.MaxWaiting, RequestBytes: int64(f.MaxRequestBytes), ReceiptBytes: int64(f.MaxReceiptBytes), EventBytes: int64(f.MaxEventBytes),
	}
}
