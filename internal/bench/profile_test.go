package bench_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/pprof/profile"

	"omiappreg.org/keyrotation/internal/bench"
)

func TestShares(t *testing.T) {
	t.Parallel()
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "samples", Unit: "count"}, {Type: "cpu", Unit: "nanoseconds"}},
		PeriodType: &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}, Period: 1,
	}
	functions := map[string]*profile.Location{}
	add := func(value int64, part string, stack ...string) {
		s := &profile.Sample{Value: []int64{1, value}, Label: map[string][]string{}}
		if part != "" {
			s.Label["part"] = []string{part}
		}
		for _, name := range stack {
			if functions[name] == nil {
				f := &profile.Function{ID: uint64(len(functions) + 1), Name: name}
				functions[name] = &profile.Location{ID: f.ID, Line: []profile.Line{{Function: f}}}
				p.Function, p.Location = append(p.Function, f), append(p.Location, functions[name])
			}
			s.Location = append(s.Location, functions[name])
		}
		p.Sample = append(p.Sample, s)
	}
	add(30, "registry", "crypto/internal/fips140/edwards25519/field.feMul", "crypto/ed25519.Verify", "main.main")
	add(10, "registry", "crypto/internal/fips140/edwards25519/field.feMul", "crypto/internal/fips140/ed25519.Sign", "crypto/ed25519.Sign")
	add(20, "auth", "syscall.Fsync", "modernc.org/libc.Xfsync", "modernc.org/sqlite/lib._walFrames", "database/sql.(*Tx).Commit")
	add(5, "auth", "runtime.memmove", "github.com/go-json-experiment/json.Marshal")
	add(5, "auth", "main.main")
	add(10, "", "internal/poll.(*FD).Write", "github.com/nats-io/nats-server/v2/server.(*client).flushOutbound")
	add(10, "", "runtime.scanobject", "runtime.gcBgMarkWorker")
	add(10, "", "runtime.futex", "runtime.findRunnable", "runtime.mcall")
	var raw bytes.Buffer
	if err := p.Write(&raw); err != nil {
		t.Fatal(err)
	}
	shares, err := bench.Shares(raw.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]float64{
		"registry": {"verify": 0.3, "sign": 0.1},
		"auth":     {"store": 0.2, "json": 0.05, "other": 0.05},
		"broker":   {"broker": 0.1},
		"runtime":  {"garbage_collection": 0.1, "scheduler": 0.1},
	}
	if diff := cmp.Diff(want, shares, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
		t.Error(diff)
	}
}
