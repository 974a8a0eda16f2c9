package testenv

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// NewLimitedBroker is [NewBroker] with these limits on what may be asked of JetStream. It can't be stopped.
func NewLimitedBroker(t testing.TB, limits server.JSLimitOpts) *Broker {
	t.Helper()
	ns, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), JetStreamLimits: limits, NoLog: true, NoSigs: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(time.Minute) {
		t.Fatal("the broker does not start")
	}
	return &Broker{t: t, url: ns.ClientURL()}
}
