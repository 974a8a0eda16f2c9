package session

import (
	"cmp"
	"os"
	"time"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
)

// Connection has the flags of every command that talks to a deployment.
type Connection struct {
	process.NATS `embed:""`
	Trust        []string      `env:"OMI_TRUST" placeholder:"ed25519:…" help:"The registry's public key, repeatable; without it, the registry is believed."`
	TrustFile    string        `name:"trust-file" env:"OMI_TRUST_FILE" placeholder:"FILE" help:"A file with public keys of the registry, one on each line."`
	Origin       string        `env:"OMI_ORIGIN" placeholder:"DOMAIN" help:"The registry's domain name; without it, the registry is believed."`
	Timeout      time.Duration `default:"10s" help:"How long to wait for an answer (${default})."`
	JSON         bool          `help:"Print JSON (one object per line when streaming)."`
}

// TargetFlags name a service.
type TargetFlags struct {
	AppID     string `name:"app-id" env:"OMI_APP_ID" required:"" placeholder:"ID" help:"The app, for example org.example.dev."`
	ServiceID string `name:"service-id" env:"OMI_SERVICE_ID" required:"" placeholder:"ID" help:"The service, for example cms."`
}

// Target returns the service that the flags name.
func (f TargetFlags) Target() (events.Target, error) {
	app, err := events.ParseAppID(f.AppID)
	if err != nil {
		return events.Target{}, process.Usagef("--app-id: %w", err)
	}
	service, err := events.ParseServiceID(f.ServiceID)
	if err != nil {
		return events.Target{}, process.Usagef("--service-id: %w", err)
	}
	return events.Target{App: app, Service: service}, nil
}

// Trusts reports whether the flags name the registry's keys.
func (c Connection) Trusts() bool { return len(c.Trust) > 0 || c.TrustFile != "" }

// Trusted returns the flags that name the registry's keys and its origin.
func (c Connection) Trusted() process.Trust {
	return process.Trust{Origin: c.Origin, Keys: c.Trust, File: c.TrustFile}
}

// Check says what is wrong with the flags, before the command waits for the broker.
func (c Connection) Check() error {
	if trust := c.Trusted(); c.Trusts() {
		trust.Origin = cmp.Or(c.Origin, "any.example") // the registry's own is known later
		if _, err := trust.Load(); err != nil {
			return err
		}
	}
	if c.Origin != "" && events.CheckOrigin(c.Origin) != nil {
		return process.Usagef("--origin %q: %w", c.Origin, events.ErrOrigin)
	}
	if c.Timeout <= 0 {
		return process.Usagef("--timeout is how long to wait for an answer, such as 10s, and not %s", c.Timeout)
	}
	return c.NATS.Check()
}

// OptionalTarget may name a service.
type OptionalTarget struct {
	AppID     string `name:"app-id" env:"OMI_APP_ID" placeholder:"ID" help:"The app, for example org.example.dev."`
	ServiceID string `name:"service-id" env:"OMI_SERVICE_ID" placeholder:"ID" help:"The service, for example cms."`
}

// Target returns the service that the flags name. A variable alone, which may be set for other
// commands, names none.
func (f OptionalTarget) Target() (t events.Target, given bool, err error) {
	if (f.AppID == "") != (f.ServiceID == "") {
		if f.AppID == os.Getenv("OMI_APP_ID") && f.ServiceID == os.Getenv("OMI_SERVICE_ID") {
			return t, false, nil
		}
		return t, false, process.Usagef("--app-id and --service-id go together: they name one service")
	}
	if f.AppID == "" {
		return t, false, nil
	}
	t, err = TargetFlags(f).Target()
	return t, true, err
}

// FlagsOf returns the flags that name a service.
func FlagsOf(t events.Target) string {
	return "--app-id " + t.App.String() + " --service-id " + t.Service.String()
}

// MasterKey reads the file of --master-key.
func MasterKey(path string) (events.SigningKey, error) {
	return process.ReadKey("--master-key", path, "the developer makes one with `omi keygen --out FILE`, and the registry's operator adds it")
}

// ServiceKey reads the file of --key, or the current key in the folder of a key store.
func ServiceKey(path string) (events.SigningKey, error) {
	return process.ReadKey("--key", client.KeyFile(path), "omi bind makes a service's first one, and omi reset replaces one that is lost")
}

// Tighten restores mode 0600 of private keys' files, if a mount has let a group in, and says so. It
// also says who may replace the files.
func Tighten(paths ...string) {
	Remark(keyfile.Tighten(paths...))
	Remark(keyfile.OpenFolders(paths...))
}

// Remark prints a remark that is no error, if there is one.
func Remark(said string) {
	if said != "" {
		printable.Fprintf(os.Stderr, "omi: %s\n", said)
	}
}
