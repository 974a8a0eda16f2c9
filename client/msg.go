package client

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"omiappreg.org/keyrotation/internal/api"
)

// SignMsg signs a NATS message as a service (docs/signing.md), and sets its header. It covers the
// subject, the payload, the content type, and the named fields if the message has them. Sign a
// message that is published once, and publish it at once. To send it again, sign it again.
//
// The reply subject is not covered: NATS rewrites it between accounts and at leaf nodes.
func SignMsg(id Identity, m *nats.Msg, fields ...string) error {
	if m.Header == nil {
		m.Header = make(nats.Header)
	}
	setField(m.Header, digestField, digestOf(sha256.Sum256(m.Data)))
	if err := coveredMsg(m.Subject, m.Header).sign(id, fields, time.Now()); err != nil {
		return fmt.Errorf("sign the message to %s: %w", m.Subject, err)
	}
	return nil
}

// coveredMsg uses "@subject", which RFC 9421 does not know, for the destination of a message.
func coveredMsg(subject string, header map[string][]string) *covered {
	return &covered{tag: messageTag, derived: []component{{"@subject", subject}}, header: header}
}

// VerifyMsg returns the signer of a message. An [*events.Refusal] says why it must not count.
// Another error means that this can't be known.
//
// It is for messages that are answered at once. A message that waits in a stream grows too old, and
// is not accepted twice if it is delivered twice. If NATS maps the subject on the way, or an
// account imports it under another name, give VerifyMsg a message with the subject to which it was
// published.
func (g *Guard) VerifyMsg(ctx context.Context, m *nats.Msg) (Caller, error) {
	return g.verifyMsg(ctx, m.Subject, m.Header, m.Data)
}

func (g *Guard) verifyMsg(ctx context.Context, subject string, header map[string][]string, data []byte) (Caller, error) {
	caller, _, err := g.check(ctx, coveredMsg(subject, header), func() ([]byte, error) { return data, nil })
	return caller, err
}

// RequireSignedMsg lets pass the requests to a micro service that a service has signed, one at a
// time as micro does. [CallerFrom] returns the signer. Others get the problem document that they
// would get over HTTP, and the error headers.
func (g *Guard) RequireSignedMsg(ctx context.Context, next func(context.Context, micro.Request)) micro.Handler {
	return micro.HandlerFunc(func(r micro.Request) {
		caller, err := g.verifyMsg(ctx, r.Subject(), r.Headers(), r.Data())
		if err != nil {
			if err := api.RespondProblem(r, g.problem(ctx, err)); err != nil {
				g.cfg.Log.DebugContext(ctx, "respond", "error", err)
			}
			return
		}
		next(context.WithValue(ctx, callerKey{}, caller), r)
	})
}
