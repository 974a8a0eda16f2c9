package sqldb

import "testing"

// TestStartupParameters: what a session relies on is said once, whatever the URL says and however
// it spells it.
func TestStartupParameters(t *testing.T) {
	t.Parallel()
	cfg, err := serverConfig("postgres://omi@127.0.0.1/omi?timezone=Asia/Tokyo&datestyle=German&Standard_Conforming_Strings=off")
	if err != nil {
		t.Fatal(err)
	}
	want := startupParameters()
	for name, value := range cfg.RuntimeParams {
		if want[name] != value {
			t.Errorf("%s is %q", name, value)
		}
	}
	if len(cfg.RuntimeParams) != len(want) {
		t.Errorf("%v", cfg.RuntimeParams)
	}
}
