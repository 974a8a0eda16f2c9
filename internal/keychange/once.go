package keychange

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/inspect"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/pin"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
)

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

// Binding is what `omi bind` asks for: its grammar.
type Binding struct {
	session.Connection `embed:""`
	DeveloperFlags     `embed:""`
	Key                string `required:"" env:"OMI_KEY" placeholder:"FILE" help:"The first key's file, or the folder of its key store; made if missing."`
	ServiceType        string `placeholder:"TYPE" help:"The kind of service, for example cms-article."`
	EndpointURL        string `name:"endpoint-url" placeholder:"URL" help:"The service's address: an absolute http or https URL."`
}

// Help is shown by --help.
func (*Binding) Help() string {
	return `The registry must know the app and its Master Key: its operator adds it. A --key that ends
in a slash is a folder, the key store of a service that uses package client. If the answer was lost,
run the command again: it says the same.

  omi bind --app-id org.example.shop --service-id cms --master-key master.pem --key cms.pem
  omi bind --app-id org.example.shop --service-id cms --master-key master.pem --key /var/lib/cms/keys/`
}

// Run binds a service to the key in a file, which it makes if it is missing.
func (c *Binding) Run() error {
	t, master, err := c.read()
	if err != nil {
		return err
	}
	file, err := firstKey(c.Key)
	if err != nil {
		return err
	}
	draft := session.NewDraft(events.Binding, t)
	draft.ServiceType, draft.EndpointURL = c.ServiceType, c.EndpointURL
	if draft.NewKey, err = session.ServiceKey(file); err != nil {
		return err
	}
	session.Remark(keyfile.OpenFolders(file))
	if err := notMaster(c.Key, draft.NewKey, master); err != nil {
		return err
	}
	return sendOnce(c.Connection, draft, master, "is bound")
}

// Revocation is what `omi revoke` asks for: its grammar.
type Revocation struct {
	session.Connection `embed:""`
	DeveloperFlags     `embed:""`
	ProviderReceipt    string `placeholder:"FILE" help:"A JSON object to keep with the record, unchanged."`
}

// Help is shown by --help.
func (*Revocation) Help() string {
	return `Nothing that the service signs is accepted any more, and no key of the service can change
that. The developer can bind it again, with a key that was never used. Verifiers that use its JWK
Set may have a copy: docs/jwks.md says for how long.

  omi revoke --app-id org.example.shop --service-id cms --master-key master.pem`
}

// Run revokes a service.
func (c *Revocation) Run() error {
	t, master, err := c.read()
	if err != nil {
		return err
	}
	draft := session.NewDraft(events.Revocation, t)
	if c.ProviderReceipt != "" {
		content, err := os.ReadFile(c.ProviderReceipt)
		if err != nil {
			return process.Usagef("--provider-receipt: %w", err)
		}
		draft.ProviderReceipt = jsontext.Value(content)
		if !draft.ProviderReceipt.IsValid() || draft.ProviderReceipt.Kind() != '{' {
			return process.Usagef("--provider-receipt: %s is not a JSON object", c.ProviderReceipt)
		}
	}
	return sendOnce(c.Connection, draft, master, "is revoked: all its keys have ended")
}

// newMessage signs a request.
func newMessage(d events.Draft, by events.SigningKey) (registryclient.Message, error) {
	if d.NewKey.IsZero() {
		return registryclient.Sign(d, by.Private(), nil)
	}
	return registryclient.Sign(d, by.Private(), d.NewKey.Private())
}

// firstKey makes a service's first key, unless it exists. A path that ends in a slash is a folder
// to create.
func firstKey(path string) (file string, err error) {
	if strings.HasSuffix(path, "/") {
		if err := keyfile.MakeFolder(path); err != nil {
			return "", process.Usagef("--key: %w", err)
		}
	}
	file = client.KeyFile(path)
	if _, err := os.Lstat(file); errors.Is(err, os.ErrNotExist) {
		if err := keyfile.Create(file, events.GenerateSigningKey()); err != nil {
			return "", process.Usagef("--key: %w", err)
		}
	}
	return file, nil
}

// sendOnce sends a request that needs no state, and prints the answer.
func sendOnce(c session.Connection, draft events.Draft, by events.SigningKey, done string) error {
	if _, err := newMessage(draft, by); err != nil { // before the command waits for the broker
		return process.Usage(err)
	}
	return c.With(c.Timeout, func(ctx context.Context, s *session.Session) error {
		draft.Origin = s.Trust.Origin()
		if err := pin.CheckRegistry(draft.Target, draft.Origin); err != nil {
			return err
		}
		m, err := newMessage(draft, by)
		if err != nil {
			return process.Usage(err)
		}
		receipt, err := s.Sender().Send(ctx, draft.Target, m, nil)
		if err != nil {
			return session.Unanswered(err)
		}
		if made := madeBefore(ctx, s, draft, receipt.Reason); made.Sequence > 0 {
			at := made.From
			receipt = events.Receipt{
				Target: draft.Target, Event: events.RequestCommitted, Timestamp: at, Sequence: made.Sequence, PublicKey: made.PublicKey,
				GracePeriodExpiry: at,
			}
		}
		pin.Advance(draft.Target, receipt)
		return printReceipt(c, receipt, fmt.Sprintf("%s %s", draft.Target, done))
	})
}

// madeBefore returns the change that was asked for, if it is the service's last one: a request that
// is sent again because its answer was lost is another request, and is refused.
func madeBefore(ctx context.Context, s *session.Session, d events.Draft, refused events.Reason) (made events.HistoryKey) {
	if refused != events.AlreadyBound && (refused != events.UnknownService || d.Kind != events.Revocation) {
		return made
	}
	history, err := s.History(ctx, d.Target)
	changes := inspect.Changes(history)
	if err != nil || len(changes) == 0 {
		return made // the refusal stands
	}
	last := changes[len(changes)-1]
	if d.Kind == events.Revocation && last.Event == events.ServiceRevocation || d.Kind == events.Binding && last.PublicKey == d.NewKey.Public() {
		made = last
	}
	return made
}

// printReceipt prints a receipt. A refusal is an error with its reason.
func printReceipt(c session.Connection, receipt events.Receipt, done string) error {
	refused := receipt.Event == events.RequestRejected
	var printed error
	if c.JSON {
		printed = process.PrintJSON(inspect.ReceiptView(receipt))
	} else if !refused {
		printed = process.Print("%s", inspect.ReceiptText(receipt, done))
	}
	if refused { // it says as much as what was to be printed
		return process.Refused(&client.RefusedError{Receipt: receipt})
	}
	return unsaid(done, printed)
}
