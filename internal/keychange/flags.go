package keychange

import (
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/session"
)

// waitPropagated is a value of --wait; the other one is committed.
const waitPropagated = "propagated"

// StoreFlags name the key store of a service whose key changes.
type StoreFlags struct {
	Key  string `required:"" env:"OMI_KEY" placeholder:"FILE" help:"The key's file, or the folder of its key store; gets the new key."`
	Wait string `enum:"committed,propagated" default:"committed" help:"Wait until the change is committed (the default) or propagated."`
}

// SavedFlags are for a new key that is saved elsewhere before anything is sent.
type SavedFlags struct {
	NewKey     string `placeholder:"FILE" help:"Change to the key in FILE, which you made and saved beforehand."`
	BeforeSend string `placeholder:"CMD" help:"Command that saves $OMI_NEW_KEY_FILE before anything is sent (sh -c)."`
}

// DescribeFlags describe a service in its binding.
type DescribeFlags struct {
	ServiceType string `placeholder:"TYPE" help:"The kind of service, for example cms-article."`
	EndpointURL string `name:"endpoint-url" placeholder:"URL" help:"The service's address: an absolute http or https URL."`
}

// DeveloperFlags name a service, and the developer's key that signs for it.
type DeveloperFlags struct {
	session.TargetFlags `embed:""`
	MasterKey           string `required:"" env:"OMI_MASTER_KEY" placeholder:"FILE" help:"The developer's Master Key."`
}

func (f *DeveloperFlags) read() (t events.Target, master events.SigningKey, err error) {
	if t, err = f.Target(); err == nil {
		master, err = session.MasterKey(f.MasterKey)
		session.Tighten(f.MasterKey)
	}
	return t, master, err
}
