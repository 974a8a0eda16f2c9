package consume

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// TestRefusedIsToldOnce: a broker that refuses to open the durable is not logged as an interrupted
// consumer, again and again.
func TestRefusedIsToldOnce(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	var said bytes.Buffer
	tries := 0
	err := Run(ctx, Config[struct{}]{
		Open: func(context.Context) (Source[struct{}], error) {
			if tries++; tries == 5 {
				stop()
			}
			return nil, jetstream.ErrJetStreamNotEnabled
		},
		MaxBackoff: time.Millisecond, Log: slog.New(slog.NewTextHandler(&said, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, once := range []string{"consumer interrupted", "waiting does not change that"} {
		if n := strings.Count(said.String(), once); n != 1 {
			t.Errorf("%q %d times:\n%s", once, n, &said)
		}
	}
}
