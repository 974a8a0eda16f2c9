package registry

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/testenv"
)

// TestSwitchover: after a standby has taken over, and the old primary is a standby that answers,
// every request is answered: by a URL that names both servers, and by one whose address leads to
// the old one until somebody has it lead to the new one.
func TestSwitchover(t *testing.T) {
	t.Parallel()
	primary := testenv.NewPostgresServer(t)
	standby := primary.NewStandby()
	first, second := testenv.NewProxy(t, primary.Addr()), testenv.NewProxy(t, standby.Addr())
	forwarder := testenv.NewProxy(t, primary.Addr())
	both, err := url.Parse(primary.CreateDatabase("two_hosts", first.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	both.Host += "," + second.Addr()
	worlds := map[string]*world{}
	developers := map[string]*developer{}
	for name, database := range map[string]string{"both": both.String(), "forwarded": primary.CreateDatabase("forwarder", forwarder.Addr())} {
		worlds[name], developers[name], _ = boundWorld(t, database)
	}

	primary.SwitchTo(standby)
	for _, proxy := range []*testenv.Proxy{first, forwarder} {
		proxy.Retarget(primary.Addr()) // on its new port
	}
	testenv.Eventually(t, patience, "the registry has asked the old primary", func() error {
		if err := worlds["forwarded"].store.Ping(t.Context()); err == nil {
			return errors.New("the standby is taken for a primary")
		}
		return nil
	})
	began := time.Now()
	forwarder.Retarget(standby.Addr())
	for name, w := range worlds {
		d := developers[name]
		for range 3 {
			w.commit(d.rotate())
		}
		w.settled()
		w.oneSequenceOnce(d.target)
		if err := w.store.Ping(t.Context()); err != nil {
			t.Error(err)
		}
	}
	t.Logf("all are answered %s after it", time.Since(began).Round(time.Millisecond))
}
