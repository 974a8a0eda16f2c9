// Package signing is `omi sign` and `omi verify`.
package signing

import (
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
