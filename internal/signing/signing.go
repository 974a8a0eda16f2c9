// Package signing is `omi sign` and `omi verify`.
package signing

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"
	"github.com/go-json-experiment/json"
	"github.com/mattn/go-isatty"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/registryclient"
	"omiappreg.org/keyrotation/internal/session"
)

// Signature is what `omi sign` asks for: its grammar.
type Signature struct {
	session.OptionalTarget `embed:""`
	MessageFlag            `embed:""`
	Key                    string `required:"" env:"OMI_KEY" placeholder:"FILE" help:"The key that signs, or the folder of its key store."`
	JSON                   bool   `help:"Print the question for Auth, as omi verify --query takes it."`
}

// Help is shown by --help.
func (*Signature) Help() string {
	return `Signs the bytes as they are: a newline at the end counts. No broker is needed, and nothing
is sent.

The command refuses a text that can be read as a request to the registry, or that begins as the
signature base of an HTTP message: anyone who has that signature could give the service another key,
or send a message in its name.

  printf %s 'hello' | omi sign --key cms.pem
  omi sign --key cms.pem --in invoice.pdf > invoice.sig

--json prints the question for Auth, also for POST /v1/verify. It needs --app-id and --service-id:

  printf %s 'hello' | omi sign --key cms.pem --app-id org.example.dev --service-id cms --json |
    omi verify --query -`
}

// Run signs a message.
func (c Signature) Run() error {
	t, given, err := c.Target()
	if err != nil {
		return err
	}
	if c.JSON && !given {
		return process.Usagef("--json prints a question about a service: name it with --app-id and --service-id")
	}
	key, err := session.ServiceKey(c.Key)
	if err != nil {
		return err
	}
	session.Remark(keyfile.OpenFolders(client.KeyFile(c.Key)))
	message, err := c.read()
	if err != nil {
		return err
	}
	if err := events.CheckMessage(message); err != nil {
		return process.Usagef("--in: nothing was signed: %w", err)
	}
	signed := key.Sign(message)
	if !c.JSON {
		return process.Print("%s\n", signed)
	}
	query := newQuery(events.VerifyQuery{Target: t, Message: message, Signature: signed})
	if err := query.fits(); err != nil {
		return err
	}
	return process.PrintJSON(query)
}

// MessageFlag says where the bytes of a message are read. They are never an argument, because every
// user of the machine can see arguments, and a shell changes them.
type MessageFlag struct {
	In string `default:"-" placeholder:"FILE" help:"The message; - is the standard input (the default)."`
}

func (f MessageFlag) read() ([]byte, error) {
	if f.In != "-" {
		content, err := os.ReadFile(f.In)
		if err != nil {
			return nil, process.Usagef("--in: %w", err)
		}
		return content, nil
	}
	if isatty.IsTerminal(os.Stdin.Fd()) {
		fmt.Fprintln(os.Stderr, "omi: reading the message from the terminal; end it with Ctrl-D on a line of its own")
	}
	content, err := io.ReadAll(os.Stdin)
	if err != nil {
		return nil, fmt.Errorf("read the message from the standard input: %w", err)
	}
	return content, nil
}

// queryJSON is the question of §8.2.
type queryJSON struct {
	AppID     events.AppID     `json:"app_id"`
	ServiceID events.ServiceID `json:"service_id"`
	Message   string           `json:"message"`
	Signature events.Signature `json:"signature"`
}

func newQuery(q events.VerifyQuery) queryJSON {
	return queryJSON{q.Target.App, q.Target.Service, base64.RawURLEncoding.EncodeToString(q.Message), q.Signature}
}

// fits returns why Auth would not accept a question.
func (q queryJSON) fits() error {
	body, err := json.Marshal(q)
	if err != nil {
		return fmt.Errorf("encode the question: %w", err)
	}
	if len(body) > events.MaxQuery {
		size := base64.RawURLEncoding.DecodedLen(len(q.Message))
		room := base64.RawURLEncoding.DecodedLen(events.MaxQuery - (len(body) - len(q.Message)))
		return process.Usagef("the message has %d bytes, and Auth takes questions of 64 KiB, which is %d bytes of message: "+
			"sign a digest of it, or check it with omi verify --registry or --public-key, which take any size", size, room)
	}
	return nil
}

// Question is what `omi verify` asks: its grammar.
type Question struct {
	session.Connection     `embed:""`
	session.OptionalTarget `embed:""`
	MessageFlag            `embed:""`
	Signature              SignatureFlag `placeholder:"SIG" help:"The signature, as omi sign prints it."`
	Query                  string        `placeholder:"FILE" help:"What omi sign --json printed; - is the standard input."`
	Registry               bool          `help:"Ask the registry instead of Auth, and check the signature here."`
	PublicKey              string        `placeholder:"ed25519:…" help:"Check against this key alone, without a broker."`
}

// Help is shown by --help.
func (*Question) Help() string {
	return `The answer is accepted (by the current key, or by one in grace and until when), or refused
with a reason and exit code 1. The command asks Auth, as the application's servers do. With
--registry it asks the registry, whose answer is signed, and checks the signature itself.

  printf %s 'hello' | omi verify --app-id org.example.dev --service-id cms --signature SIG
  printf %s 'hello' | omi verify --app-id org.example.dev --service-id cms --signature SIG --registry
  omi verify --public-key ed25519:… --signature SIG --in invoice.pdf`
}

// SignatureFlag accepts any signature: one in 64 begins with a hyphen, as a flag does.
type SignatureFlag struct{ events.Signature }

// Decode implements kong.MapperValue.
func (f *SignatureFlag) Decode(ctx *kong.DecodeContext) (err error) {
	text, _ := ctx.Scan.Pop().Value.(string) // at the end of the line there is none
	f.Signature, err = events.ParseSignature(text)
	return err
}

// verdict is the result of omi verify: the answer of §8.2, and who judged.
type verdict struct {
	Result    string           `json:"result"`
	Reason    string           `json:"reason,omitzero"`
	Key       string           `json:"key,omitzero"`
	PublicKey events.PublicKey `json:"public_key,omitzero"`
	Expires   int64            `json:"expires,omitzero"`
	Sequence  int64            `json:"sequence,omitzero"`
	AsOf      int64            `json:"as_of,omitzero"`
	By        string           `json:"by"` // auth, registry or public_key
}

const (
	byAuth      = "auth"
	byRegistry  = "registry"
	byPublicKey = "public_key"
)

// Run verifies a signature.
func (c Question) Run() error {
	key, q, err := c.asked()
	if err != nil {
		return err
	}
	var v verdict
	switch {
	case c.PublicKey != "":
		v = verdict{Result: events.Refused, Reason: string(events.InvalidSignature), By: byPublicKey}
		if key.Verify(q.Message, q.Signature) {
			v = verdict{Result: events.Accepted, PublicKey: key, By: byPublicKey}
		}
	case c.Registry:
		err = c.With(c.Timeout, func(ctx context.Context, s *session.Session) error {
			v, err = judge(ctx, s, q)
			return err
		})
	default:
		v, err = c.askAuth(q)
	}
	if err != nil {
		return err
	}
	return c.print(v)
}

// asked returns what the flags ask, made before the command waits for the broker.
func (c *Question) asked() (key events.PublicKey, q events.VerifyQuery, err error) {
	if c.PublicKey != "" {
		if c.Registry {
			return key, q, process.Usagef("--registry and --public-key are two ways to check: give one of them")
		}
		if key, err = events.ParsePublicKey(c.PublicKey); err != nil {
			return key, q, process.Usagef("--public-key: %w", err)
		}
		if err = key.CheckStrength(); err != nil {
			return key, q, process.Usagef("--public-key: %w", err)
		}
	}
	target, named, err := c.Target()
	if err != nil {
		return key, q, err
	}
	if c.Query != "" {
		q, err = c.readQuery()
		if err == nil && named && q.Target != target {
			err = process.Usagef("--query is about %s, but --app-id and --service-id name %s", q.Target, target)
		}
		return key, q, err
	}
	q.Target, q.Signature = target, c.Signature.Signature
	switch {
	case c.Signature.IsZero():
		return key, q, process.Usagef("the signature is missing: give --signature SIG, or --query FILE")
	case !named && c.PublicKey == "":
		return key, q, process.Usagef("the signer is missing: give --app-id and --service-id, or --public-key")
	}
	q.Message, err = c.read()
	return key, q, err
}

func (c *Question) readQuery() (q events.VerifyQuery, err error) {
	if !c.Signature.IsZero() || c.In != "-" {
		return q, process.Usagef("--query has message and signature: give it, or --signature and --in")
	}
	var content []byte
	if c.Query == "-" {
		content, err = io.ReadAll(os.Stdin)
	} else {
		content, err = os.ReadFile(c.Query)
	}
	if err != nil {
		return q, process.Usagef("--query: %w", err)
	}
	if q, err = events.ParseVerifyQuery(content); err != nil {
		return q, process.Usagef("--query: %s is not what omi sign --json prints: %w", c.Query, err)
	}
	return q, nil
}

// askAuth asks the Auth Provider that answers first. The registry may be away meanwhile.
func (c *Question) askAuth(q events.VerifyQuery) (v verdict, err error) {
	if err := newQuery(q).fits(); err != nil {
		return v, err
	}
	err = c.WithBroker(func(ctx context.Context, s *session.Session) error {
		a, err := client.AuthVerifier{Conn: s.Conn, Timeout: c.Timeout}.Verify(ctx, q)
		v = verdict{a.Result, a.Reason, a.Key, a.PublicKey, a.Expires, a.Sequence, a.AsOf, byAuth}
		switch last := s.Conn.LastError(); {
		case err != nil && session.Denied(last):
			return process.Usage(fmt.Errorf("this account may not ask Auth (%s): omi verify --registry needs no Auth", session.Denial(last)))
		case errors.Is(err, client.ErrNoAuth):
			return process.Unreachable(fmt.Errorf("%w omi verify --registry needs no Auth", client.ErrNoAuth))
		case errors.Is(err, client.ErrStale), errors.Is(err, client.ErrNotReady):
			return process.Unreachable(err)
		case err != nil:
			return session.Coded(err)
		}
		return nil
	})
	return v, err
}

// judge answers §8.2's question from what the registry signs. Its record names every key that is
// accepted. Keys that have ended, and so the reason of a refusal, are in the history.
func judge(ctx context.Context, s *session.Session, q events.VerifyQuery) (verdict, error) {
	record, err := s.Record(ctx, q.Target)
	if errors.Is(err, registryclient.ErrUnknownService) {
		return verdict{Result: events.Refused, Reason: string(events.UnknownService), By: byRegistry}, nil
	}
	if err != nil {
		return verdict{}, err
	}
	v := verdict{Result: events.Accepted, Sequence: record.Sequence, AsOf: record.Timestamp, By: byRegistry}
	if current := record.Current.PublicKey; !current.IsZero() && current.Verify(q.Message, q.Signature) {
		v.Key, v.PublicKey = events.KeyCurrent, current
		return v, nil
	}
	for _, grace := range record.Grace {
		if grace.PublicKey.Verify(q.Message, q.Signature) {
			v.Key, v.PublicKey, v.Expires = events.KeyGrace, grace.PublicKey, grace.Expires
			return v, nil
		}
	}
	v = verdict{Result: events.Refused, Reason: string(events.InvalidSignature), AsOf: record.Timestamp, By: byRegistry}
	if record.Status == events.Revoked {
		v.Reason = events.RevokedService
		return v, nil
	}
	history, err := s.History(ctx, q.Target)
	if err != nil {
		return v, err
	}
	for _, key := range history.Keys {
		if key.PublicKey.Verify(q.Message, q.Signature) {
			v.Reason = events.ExpiredKey
		}
	}
	return v, nil
}

// print prints a verdict. A refusal is an error with its reason.
func (c *Question) print(v verdict) error {
	if c.JSON {
		if err := process.PrintJSON(v); err != nil {
			return err
		}
	}
	asOf := ""
	if v.AsOf != 0 {
		asOf = fmt.Sprintf(" (as of %s, by %s)", printable.Date(v.AsOf), map[string]string{byAuth: "Auth", byRegistry: "the registry"}[v.By])
	}
	switch {
	case v.By == byPublicKey && v.Result != events.Accepted:
		return process.Refused(errors.New("refused: this key did not make this signature over these bytes; a newline at the end counts"))
	case v.Result != events.Accepted:
		return process.Refused(fmt.Errorf("refused: %s: %s%s", v.Reason, why(v.Reason), asOf))
	case c.JSON:
	case v.By == byPublicKey:
		return process.Print("accepted: %s made this signature\n", v.PublicKey)
	case v.Key == events.KeyGrace:
		return process.Print("accepted: by a key in grace, until %s%s\n  %s\n", printable.Date(v.Expires), asOf, v.PublicKey)
	default:
		return process.Print("accepted: by the current key%s\n  %s\n", asOf, v.PublicKey)
	}
	return nil
}

// why explains §8.2's reasons to a person.
func why(reason string) string {
	switch reason {
	case string(events.UnknownService):
		return "no such service was ever bound"
	case events.RevokedService:
		return "the service is revoked, none of its keys is accepted"
	case events.ExpiredKey:
		return "a key of the service made it, and that key has ended; sign with the current one"
	default:
		return "no key of the service made it over these bytes; a newline at the end counts"
	}
}
