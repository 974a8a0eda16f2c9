// Package signing is `omi sign` and `omi verify`.
package signing

import (
	"encoding/base64"
	"fmt"
	"io"
	"os"

	"github.com/go-json-experiment/json"
	"github.com/mattn/go-isatty"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/process"
	"omiappreg.org/keyrotation/internal/session"
)

// Signature is what `omi sign` asks for.
type Signature struct {
	session.OptionalTarget
	MessageFlag
	Key  string
	JSON bool
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
