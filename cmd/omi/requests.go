package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
)

// newDraft returns a request that is made now.
func newDraft(kind events.RequestKind, t events.Target) events.Draft {
	return events.Draft{Kind: kind, Target: t, Timestamp: time.Now().Unix(), Nonce: events.NewNonce()}
}

func readKey(flag, path string) (events.SigningKey, error) {
	key, err := keyfile.Read(path)
	if errors.Is(err, keyfile.ErrMissing) {
		err = fmt.Errorf("%w: make one with `omi keygen --out %s`", err, path)
	}
	if err != nil {
		return key, process.Usagef("%s: %w", flag, err)
	}
	return key, nil
}

// describeFlags are what a binding may say of a service.
type describeFlags struct {
	ServiceType string `placeholder:"TYPE" help:"What kind of service it is, for example cms-article."`
	EndpointURL string `name:"endpoint-url" placeholder:"URL" help:"Where the service is reached: an absolute http or https URL."`
}

type bindCmd struct {
	connection  `embed:""`
	targetFlags `embed:""`
	MasterKey   string `required:"" env:"OMI_MASTER_KEY" placeholder:"FILE" help:"The developer's Master Key."`
	Key         string `required:"" env:"OMI_KEY" placeholder:"FILE" help:"The service's first key; it is made if the file does not exist."`

	Describe describeFlags `embed:""`
}

// Run binds a service.
func (c *bindCmd) Run() error {
	t, err := c.target()
	if err != nil {
		return err
	}
	master, err := readKey("--master-key", c.MasterKey)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(c.Key); errors.Is(err, os.ErrNotExist) {
		if err := keyfile.Create(c.Key, events.GenerateSigningKey()); err != nil {
			return process.Usage(err)
		}
	}
	draft := newDraft(events.Binding, t)
	draft.ServiceType, draft.EndpointURL = c.Describe.ServiceType, c.Describe.EndpointURL
	if draft.NewKey, err = readKey("--key", c.Key); err != nil {
		return err
	}
	return sendOnce(c.connection, draft, master, "is bound")
}

// sendOnce sends a request that needs nothing kept beside it, and prints its answer. Sent again because its answer was
// lost, a binding is refused as already_bound; if it is bound to the very key, that is what was asked for.
func sendOnce(c connection, draft events.Draft, by events.SigningKey, done string) error {
	m, err := newMessage(draft, by)
	if err != nil {
		return process.Usage(err)
	}
	return c.withSession(c.Timeout, func(ctx context.Context, s *session) error {
		receipt, err := s.exchange(ctx, draft.Target, m)
		if err != nil {
			return err
		}
		if receipt.Reason == events.AlreadyBound {
			record, err := s.record(ctx, draft.Target)
			if err == nil && record.Current.PublicKey == draft.NewKey.Public() {
				receipt = events.Receipt{
					Target: draft.Target, Event: events.RequestCommitted, Timestamp: record.Current.Since,
					Sequence: record.Sequence, PublicKey: record.Current.PublicKey, GracePeriodExpiry: record.Current.Since,
				}
			}
		}
		return answer(c, receipt, fmt.Sprintf("%s %s", draft.Target, done))
	})
}

type rotateCmd struct {
	connection  `embed:""`
	targetFlags `embed:""`
	Key         string         `required:"" env:"OMI_KEY" placeholder:"FILE" help:"The service's current key; the file holds the new one afterwards."`
	GracePeriod *time.Duration `placeholder:"300s" help:"How long the old key stays valid; whole seconds, at most the registry's own period, which is the default."`
	Emergency   bool           `help:"End the old key at once: a grace period of 0."`
}

// Run rotates a service's key. After a crash, the same command goes on where it was.
func (c *rotateCmd) Run() error {
	t, err := c.target()
	if err != nil {
		return err
	}
	draft := newDraft(events.Rotation, t)
	if draft.GracePeriod, err = c.grace(); err != nil {
		return err
	}
	return replaceKey(c.connection, c.Key, draft, "rotated", func() (events.SigningKey, error) { return readKey("--key", c.Key) })
}

func (c *rotateCmd) grace() (*int64, error) {
	if c.Emergency {
		c.GracePeriod = new(time.Duration)
	}
	if c.GracePeriod == nil {
		return nil, nil
	}
	if *c.GracePeriod < 0 || *c.GracePeriod%time.Second != 0 {
		return nil, process.Usagef("--grace-period is whole seconds, 0 or more, not %s", *c.GracePeriod)
	}
	seconds := int64(*c.GracePeriod / time.Second)
	return &seconds, nil
}

// replaceKey sends a request that gives a service a new key, and keeps that key in file.
func replaceKey(c connection, file string, draft events.Draft, done string, signer func() (events.SigningKey, error)) error {
	p := pending{file}
	if _, err := os.Lstat(p.requestFile()); errors.Is(err, os.ErrNotExist) {
		if _, err := signer(); err != nil {
			return err // before anybody is waited for
		}
	}
	return c.withSession(c.Timeout, func(ctx context.Context, s *session) error {
		if err := p.adopt(ctx, s, draft.Target); err != nil {
			return err
		}
		m, resumed, err := p.prepare(draft, signer)
		if err != nil {
			return err
		}
		if resumed && !c.JSON {
			fmt.Println("Going on with the request that was under way.")
		}
		receipt, err := p.replace(ctx, s, draft.Target, m)
		if err != nil {
			return err
		}
		return answer(c, receipt, fmt.Sprintf("%s is %s; its new key is in %s", draft.Target, done, file))
	})
}

type resetCmd struct {
	connection  `embed:""`
	targetFlags `embed:""`
	MasterKey   string `required:"" env:"OMI_MASTER_KEY" placeholder:"FILE" help:"The developer's Master Key."`
	Key         string `required:"" env:"OMI_KEY" placeholder:"FILE" help:"Where to keep the service's new key; a key that is there is replaced."`
}

// Run resets a service. After a crash, the same command goes on where it was.
func (c *resetCmd) Run() error {
	t, err := c.target()
	if err != nil {
		return err
	}
	return replaceKey(c.connection, c.Key, newDraft(events.Reset, t), "reset", func() (events.SigningKey, error) {
		return readKey("--master-key", c.MasterKey)
	})
}

type revokeCmd struct {
	connection      `embed:""`
	targetFlags     `embed:""`
	MasterKey       string `required:"" env:"OMI_MASTER_KEY" placeholder:"FILE" help:"The developer's Master Key."`
	ProviderReceipt string `placeholder:"FILE" help:"A JSON object that is kept with the record, as it is."`
}

// Run revokes a service.
func (c *revokeCmd) Run() error {
	t, err := c.target()
	if err != nil {
		return err
	}
	master, err := readKey("--master-key", c.MasterKey)
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
