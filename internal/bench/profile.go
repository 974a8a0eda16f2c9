package bench

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"runtime/pprof"
	"strings"

	"github.com/google/pprof/profile"

	"omiappreg.org/keyrotation/internal/stack"
)

// The parts of a process, as [As] labels their goroutines. The Go runtime's own work has no label.
const (
	Registry      = stack.PartRegistry
	Auth          = stack.PartAuth
	Billing       = stack.PartBilling
	Broker        = stack.PartBroker
	LoadGenerator = "load_generator"
	Runtime       = "runtime"
)

const partLabel = "part"

// As runs do as a part of the process: a profile counts its goroutine, and all that it starts, for
// that part.
func As(ctx context.Context, part string, do func(ctx context.Context)) {
	pprof.Do(ctx, pprof.Labels(partLabel, part), do)
}

// The uses of the CPU.
const (
	Verify    = "verify"
	Sign      = "sign"
	Keys      = "weak_key_check"
	Store     = "store"
	BrokerOwn = "broker"
	Messaging = "nats_client"
	JSON      = "json"
	GC        = "garbage_collection"
	Scheduler = "scheduler"
	Other     = "other"
)

const serverPackage = "github.com/nats-io/nats-server"

// kinds maps the beginning of a function's name to a use. The innermost frame that has one decides.
var kinds = []struct{ prefix, kind string }{ //nolint:gochecknoglobals // a table
	{"runtime.gcBgMarkWorker", GC}, {"runtime.gcAssist", GC}, {"runtime.bgsweep", GC}, {"runtime.bgscavenge", GC},
	{"crypto/internal/fips140/ed25519.sign", Sign}, {"crypto/internal/fips140/ed25519.Sign", Sign},
	{"crypto/ed25519.Sign", Sign}, {"crypto/ed25519.PrivateKey", Sign},
	{"omiappreg.org/keyrotation/events.SigningKey.Sign", Sign}, {"crypto/ed25519.", Verify},
	{"omiappreg.org/keyrotation/events.(*trustedKey).madeAll", Verify},
	{"omiappreg.org/keyrotation/events.PublicKey.CheckStrength", Keys}, {"omiappreg.org/keyrotation/events.WeakKeys", Keys},
	{"modernc.org/", Store}, {"database/sql.", Store}, {"github.com/jackc/pgx", Store},
	{"omiappreg.org/keyrotation/internal/sqldb", Store},
	{serverPackage, BrokerOwn}, {"github.com/nats-io/nats.go", Messaging},
	{"github.com/go-json-experiment/json", JSON}, {"encoding/json", JSON},
}

// Profile is a running CPU profile.
type Profile struct{ raw bytes.Buffer }

// StartProfile starts a CPU profile of the process.
func StartProfile() (*Profile, error) {
	p := &Profile{}
	if err := pprof.StartCPUProfile(&p.raw); err != nil {
		return nil, fmt.Errorf("start the CPU profile: %w", err)
	}
	return p, nil
}

// Stop ends the profile, and returns it in the form that `go tool pprof` reads.
func (p *Profile) Stop() []byte {
	pprof.StopCPUProfile()
	return p.raw.Bytes()
}

// Shares returns the shares of a profile's CPU time, by part and by use. They add up to 1.
func Shares(raw []byte) (map[string]map[string]float64, error) {
	p, err := profile.ParseData(raw)
	if err != nil {
		return nil, fmt.Errorf("read the CPU profile: %w", err)
	}
	shares, total := map[string]map[string]float64{}, 0.0
	for _, s := range p.Sample {
		part, kind := partOf(s), kindOf(s)
		if part == Runtime && kind == Other {
			kind = Scheduler // other work without a part
		}
		if shares[part] == nil {
			shares[part] = map[string]float64{}
		}
		value := float64(s.Value[len(s.Value)-1])
		shares[part][kind] += value
		total += value
	}
	for _, kinds := range shares {
		for kind := range kinds {
			kinds[kind] /= total
		}
	}
	return shares, nil
}

func partOf(s *profile.Sample) string {
	if labels := s.Label[partLabel]; len(labels) > 0 {
		return labels[0]
	}
	for name := range functions(s) { // the server labels its goroutines itself
		if strings.HasPrefix(name, serverPackage) {
			return Broker
		}
	}
	return Runtime
}

// functions yields the names of a stack's functions, the innermost first.
func functions(s *profile.Sample) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, location := range s.Location {
			for _, line := range location.Line {
				if line.Function != nil && !yield(line.Function.Name) {
					return
				}
			}
		}
	}
}

func kindOf(s *profile.Sample) string {
	for name := range functions(s) {
		for _, k := range kinds {
			if strings.HasPrefix(name, k.prefix) {
				return k.kind
			}
		}
	}
	return Other
}
