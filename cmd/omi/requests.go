package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
)

// newDraft returns a request that is made now. The session says for which registry it is.
func newDraft(kind events.RequestKind, t events.Target) events.Draft {
	return events.Draft{Kind: kind, Target: t, Timestamp: time.Now().Unix(), Nonce: events.NewNonce()}
}

// newMessage signs a request.
func newMessage(d events.Draft, by events.SigningKey) (registryclient.Message, error) {
	if d.NewKey.IsZero() {
		return registryclient.Sign(d, by.Private(), nil)
	}
	return registryclient.Sign(d, by.Private(), d.NewKey.Private())
}

// unanswered is the error of a request whose answer is not waited for any more.
func unanswered(err error) error {
	next := fmt.Sprintf("%v; run the same command again", err)
	if errors.Is(err, registryclient.ErrNoAnswer) {
		next = fmt.Sprintf("%v; run the same command again to pick up its answer", registryclient.ErrNoAnswer)
	}
	return process.Unreachable(process.Worded{Text: next, Err: err})
}

func readMasterKey(path string) (events.SigningKey, error) {
	return readKey("--master-key", path, "the developer makes one with `omi keygen --out FILE`, and the registry's operator adds it")
}

func readServiceKey(path string) (events.SigningKey, error) {
	return readKey("--key", client.KeyFile(path), "omi bind makes a service's first one, and omi reset replaces one that is lost")
}

// readKey reads a key's file. If the file is missing, the error says how to get one.
func readKey(flag, path, origin string) (events.SigningKey, error) {
	key, err := keyfile.Read(path)
	if errors.Is(err, keyfile.ErrMissing) {
		err = fmt.Errorf("%w: %s", err, origin)
	}
	if err != nil {
		return key, process.Usagef("%s: %w", flag, err)
	}
	return key, nil
}

// describeFlags describe a service in its binding.
type describeFlags struct {
	ServiceType string `placeholder:"TYPE" help:"The kind of service, for example cms-article."`
	EndpointURL string `name:"endpoint-url" placeholder:"URL" help:"The service's address: an absolute http or https URL."`
}

// developerFlags name a service, and the developer's key that signs for it.
type developerFlags struct {
	targetFlags `embed:""`
	MasterKey   string `required:"" env:"OMI_MASTER_KEY" placeholder:"FILE" help:"The developer's Master Key."`
}

func (f *developerFlags) read() (t events.Target, master events.SigningKey, err error) {
	if t, err = f.target(); err == nil {
		master, err = readMasterKey(f.MasterKey)
		tighten(f.MasterKey)
	}
	return t, master, err
}

// tighten restores mode 0600 of private keys' files, if a mount has let a group in, and says so. It
// also says who may replace the files.
func tighten(paths ...string) {
	remark(keyfile.Tighten(paths...))
	remark(keyfile.OpenFolders(paths...))
}

// remark prints a remark that is no error, if there is one.
func remark(said string) {
	if said != "" {
		printable.Fprintf(os.Stderr, "omi: %s\n", said)
	}
}

type bindCmd struct {
	connection     `embed:""`
	developerFlags `embed:""`
	Key            string `required:"" env:"OMI_KEY" placeholder:"FILE" help:"The first key's file, or the folder of its key store; made if missing."`

	Describe describeFlags `embed:""`
}

// Help is shown by --help.
func (*bindCmd) Help() string {
	return `The registry must know the app and its Master Key: its operator adds it. A --key that ends
in a slash is a folder, the key store of a service that uses package client. If the answer was lost,
run the command again: it says the same.

  omi bind --app-id org.example.shop --service-id cms --master-key master.pem --key cms.pem
  omi bind --app-id org.example.shop --service-id cms --master-key master.pem --key /var/lib/cms/keys/`
}

// Run binds a service.
func (c *bindCmd) Run() error {
	t, master, err := c.read()
	if err != nil {
		return err
	}
	file, err := firstKey(c.Key)
	if err != nil {
		return err
	}
	draft := newDraft(events.Binding, t)
	draft.ServiceType, draft.EndpointURL = c.Describe.ServiceType, c.Describe.EndpointURL
	if draft.NewKey, err = readServiceKey(file); err != nil {
		return err
	}
	remark(keyfile.OpenFolders(file))
	if err := notMaster(c.Key, draft.NewKey, master); err != nil {
		return err
	}
	return sendOnce(c.connection, draft, master, "is bound")
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
func sendOnce(c connection, draft events.Draft, by events.SigningKey, done string) error {
	if _, err := newMessage(draft, by); err != nil { // before the command waits for the broker
		return process.Usage(err)
	}
	return c.withSession(c.Timeout, func(ctx context.Context, s *session) error {
		draft.Origin = s.trust.Origin()
		if err := pinnedHere(draft.Target, draft.Origin); err != nil {
			return err
		}
		m, err := newMessage(draft, by)
		if err != nil {
			return process.Usage(err)
		}
		receipt, err := s.sender().Send(ctx, draft.Target, m, nil)
		if err != nil {
			return unanswered(err)
		}
		if made := s.madeBefore(ctx, draft, receipt.Reason); made.Sequence > 0 {
			at := made.From
			receipt = events.Receipt{
				Target: draft.Target, Event: events.RequestCommitted, Timestamp: at, Sequence: made.Sequence, PublicKey: made.PublicKey,
				GracePeriodExpiry: at,
			}
		}
		advancePin(draft.Target, receipt)
		return answer(c, receipt, fmt.Sprintf("%s %s", draft.Target, done))
	})
}

// madeBefore returns the change that was asked for, if it is the service's last one: a request that
// is sent again because its answer was lost is another request, and is refused.
func (s *session) madeBefore(ctx context.Context, d events.Draft, refused events.Reason) (made events.HistoryKey) {
	if refused != events.AlreadyBound && (refused != events.UnknownService || d.Kind != events.Revocation) {
		return made
	}
	history, err := s.history(ctx, d.Target)
	changes := changesOf(history)
	if err != nil || len(changes) == 0 {
		return made // the refusal stands
	}
	last := changes[len(changes)-1]
	if d.Kind == events.Revocation && last.Event == events.ServiceRevocation || d.Kind == events.Binding && last.PublicKey == d.NewKey.Public() {
		made = last
	}
	return made
}

type revokeCmd struct {
	connection      `embed:""`
	developerFlags  `embed:""`
	ProviderReceipt string `placeholder:"FILE" help:"A JSON object to keep with the record, unchanged."`
}

// Help is shown by --help.
func (*revokeCmd) Help() string {
	return `Nothing that the service signs is accepted any more, and no key of the service can change
that. The developer can bind it again, with a key that was never used. Verifiers that use its JWK
Set may have a copy: docs/jwks.md says for how long.

  omi revoke --app-id org.example.shop --service-id cms --master-key master.pem`
}

// Run revokes a service.
func (c *revokeCmd) Run() error {
	t, master, err := c.read()
	if err != nil {
		return err
	}
	draft := newDraft(events.Revocation, t)
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
	return sendOnce(c.connection, draft, master, "is revoked: all its keys have ended")
}
