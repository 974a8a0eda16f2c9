package storage_test

import (
	"bytes"
	"testing"

	"omiappreg.org/keyrotation/internal/subscriber/storage"
	"omiappreg.org/keyrotation/internal/subscriber/subtest"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestHostileSettings: the settings that PostgreSQL gives to a role's sessions change nothing, in
// any mode, and behind a pooler.
func TestHostileSettings(t *testing.T) {
	t.Parallel()
	for name, url := range testenv.HostileURLs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := openStore(t, url)
			s := subtest.NewService(t, "settings")
			s.Bind(start)
			s.Rotate(start+10, 300)
			s.Reset(start + 20)
			aside := storage.SetAside{StreamSequence: 3, Subject: "omi.v1.x", Reason: "panic", Detail: `a\'b`, Payload: []byte{0xff, 0, '\\'}, At: start}
			if _, err := store.Apply(t.Context(), s.Events[:2], []storage.SetAside{aside}); err != nil {
				t.Fatal(err)
			}
			if fresh := apply(t, store, s.Events...); len(fresh) != 1 {
				t.Errorf("%d events count as new", len(fresh))
			}
			one, found, err := store.KeyringOf(t.Context(), s.Target)
			if diff := diffKeyrings(s.Keyring(), one.Keyring); err != nil || !found || diff != "" {
				t.Errorf("%v, %v: %s", found, err, diff)
			}
			if diff := diffKeyrings(s.Keyring(), all(t, store)[s.Target].Keyring); diff != "" {
				t.Error(diff)
			}
			list, err := store.ListSetAside(t.Context(), 10)
			if err != nil || len(list) != 1 || !bytes.Equal(list[0].Payload, aside.Payload) || list[0].Detail != aside.Detail {
				t.Errorf("set aside: %+v, %v", list, err)
			}
		})
	}
}
