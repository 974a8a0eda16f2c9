package inspect

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// TestStatusView shows one service as it is asked about again and again.
func TestStatusView(t *testing.T) {
	t.Parallel()
	target, err := events.ParseTarget("org.example.shop.cms")
	if err != nil {
		t.Fatal(err)
	}
	record := events.ServiceRecord{
		AppID: target.App, ServiceID: target.Service, Status: events.Active, Sequence: 2, Timestamp: 1705412600,
		Current: events.CurrentKey{PublicKey: events.GenerateSigningKey().Public()},
		Grace:   []events.GraceKey{{PublicKey: events.GenerateSigningKey().Public(), Expires: 1705412610}},
	}
	later := record
	later.Timestamp += 3
	ended := later
	ended.Timestamp, ended.Grace = 1705412610, nil

	var lines bytes.Buffer
	view := recordView{w: &lines}
	for _, r := range []events.ServiceRecord{record, later, later, ended, ended} {
		if err := view.show(r); err != nil {
			t.Fatal(err)
		}
	}
	for text, want := range map[string]int{"sequence 2": 2, "10s left": 1, "7s left": 0} {
		if n := strings.Count(lines.String(), text); n != want {
			t.Errorf("time that passes is no change, and the end of a key is; it printed %q %d times:\n%s", text, n, &lines)
		}
	}

	var screen bytes.Buffer
	view = recordView{w: &screen, terminal: true}
	for i, want := range []string{"10s left", "7s left"} {
		screen.Reset()
		if err := view.show([]events.ServiceRecord{record, later}[i]); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(screen.String(), "\x1b[H\x1b[J") || !strings.Contains(screen.String(), want) {
			t.Errorf("a terminal is not drawn anew with %s: %q", want, &screen)
		}
	}
}

func TestPassing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want bool
	}{
		{process.Unreachable(errors.New("nobody answers")), true},
		{process.Refused(&api.Problem{Status: 503}), true},
		{process.Refused(&api.Problem{Status: 400}), false},
		{process.Refused(registryclient.ErrUnknownService), false},
		{fmt.Errorf("the record: %w", &events.Refusal{Reason: events.UntrustedSignature}), false},
	} {
		if passing(c.err) != c.want {
			t.Errorf("%v: passing is not %t", c.err, c.want)
		}
	}
}
