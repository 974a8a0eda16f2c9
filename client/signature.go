package client

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"github.com/dunglas/httpsfv"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/api"
)

// Identity is a signer and its service: a [*Signer]. Its Sign gets the whole message and
// crypto.Hash(0) (Ed25519), and may use another key each time.
type Identity interface {
	crypto.Signer
	Target() events.Target
}

// ownSigner is a [*Signer], or a type that embeds one: it signs a signature base for this package
// alone.
type ownSigner interface {
	signOwn(rand io.Reader, message []byte, opts crypto.SignerOpts) ([]byte, error)
}

const (
	requestTag = "omi"      // of a signature of an HTTP request
	messageTag = "omi-nats" // of a signature of a NATS message
	sigLabel   = "omi"      // under which we sign; another is as good

	sigInputField  = "signature-input"
	sigField       = "signature"
	digestField    = "content-digest"
	mediaTypeField = "content-type"
	digestName     = "sha-256"

	// maxSigBase keeps a signature base within what Auth takes as a question (events.MaxQuery), in
	// base64url.
	maxSigBase = 32 << 10
	// maxSigFields bounds what a stranger can make us parse, in bytes of Signature-Input and of
	// Signature.
	maxSigFields = 8 << 10
)

// covered is a message as its signature sees it (docs/signing.md): components of RFC 9421, each a
// name and a value.
type covered struct {
	tag     string
	derived []component // what every signature of such a message covers, in addition to its fields
	header  map[string][]string
}

type component struct{ name, value string }

// errSigBase says why there is no signature base of a message.
var errSigBase = errors.New("the message can't be signed as it is")

// sign puts the fields Signature-Input and Signature into the header. It covers those of the named
// fields that are present.
func (c *covered) sign(id Identity, fields []string, now time.Time) error {
	list := httpsfv.InnerList{Params: httpsfv.NewParams()}
	for _, d := range c.derived {
		list.Items = append(list.Items, httpsfv.NewItem(d.name))
	}
	for _, name := range mustCover(fields) {
		values, err := fieldValues(c.header, name)
		if err != nil {
			return err
		}
		if len(values) > 0 {
			list.Items = append(list.Items, httpsfv.NewItem(name))
		}
	}
	list.Params.Add("created", now.Unix())
	list.Params.Add("keyid", id.Target().String())
	list.Params.Add("nonce", events.NewNonce().String())
	list.Params.Add("alg", "ed25519")
	list.Params.Add("tag", c.tag)
	base, params, err := c.base(list)
	if err != nil {
		return err
	}
	sign := id.Sign
	if own, ok := id.(ownSigner); ok {
		sign = own.signOwn
	}
	signature, err := sign(rand.Reader, base, crypto.Hash(0))
	if err != nil {
		return err
	}
	if len(signature) != ed25519.SignatureSize {
		return fmt.Errorf("%w: the signer gave %d bytes, and an Ed25519 signature has 64", errSigBase, len(signature))
	}
	setField(c.header, sigInputField, sigLabel+"="+params)
	setField(c.header, sigField, sigLabel+"=:"+base64.StdEncoding.EncodeToString(signature)+":")
	return nil
}

// base returns the signature base of these components (RFC 9421 §2.5), and the parameters as they
// stand in it.
func (c *covered) base(list httpsfv.InnerList) (base []byte, params string, err error) {
	if params, err = httpsfv.Marshal(list); err != nil {
		return nil, "", fmt.Errorf("%w: %w", errSigBase, err)
	}
	base = make([]byte, 0, 512)
	for i, item := range list.Items {
		name, _ := item.Value.(string)
		again := slices.ContainsFunc(list.Items[:i], func(o httpsfv.Item) bool { return o.Value == name })
		if again || len(item.Params.Names()) > 0 {
			return nil, "", fmt.Errorf("%w: a component with parameters, or one that is named twice", errSigBase)
		}
		value, err := c.value(name)
		if err != nil {
			return nil, "", err
		}
		base = append(append(append(append(append(base, '"'), name...), `": `...), value...), '\n')
		if len(base) > maxSigBase {
			break
		}
	}
	base = append(append(base, `"@signature-params": `...), params...)
	if len(base) > maxSigBase {
		return nil, "", fmt.Errorf("%w: its URL or its fields are too long: %d bytes at most are signed", errSigBase, maxSigBase)
	}
	return base, params, nil
}

// value returns the value of a component. No value ends its line: a sender who could write a line
// of the base could write all of it.
func (c *covered) value(name string) (string, error) {
	var value string
	if at := slices.IndexFunc(c.derived, func(d component) bool { return d.name == name }); at >= 0 {
		value = c.derived[at].value
	} else {
		if !isFieldName(name) {
			return "", fmt.Errorf("%w: a component is neither a field name in lower case nor one of docs/signing.md", errSigBase)
		}
		values, err := fieldValues(c.header, name)
		if err != nil {
			return "", err
		}
		if len(values) == 0 {
			return "", fmt.Errorf("%w: it has no field %s", errSigBase, name)
		}
		value = strings.Join(values, ", ")
	}
	for i := range len(value) {
		if b := value[i]; b != '\t' && (b < ' ' || b > '~') {
			return "", fmt.Errorf("%w: %s is not printable ASCII", errSigBase, name)
		}
	}
	return value, nil
}

// mustCover returns the names of the fields that a signature covers if a message has them, each
// once.
func mustCover(fields []string) []string {
	names := append(make([]string, 0, 2+len(fields)), digestField, mediaTypeField)
	for _, name := range fields {
		if name = strings.ToLower(name); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// fieldValues returns the values of a field, trimmed, in their order. NATS tells fields apart by
// their case, and a signature does not: a name in two spellings has no order.
func fieldValues(header map[string][]string, name string) (values []string, err error) {
	for key, lines := range header {
		if !strings.EqualFold(key, name) {
			continue
		}
		if values != nil {
			return nil, fmt.Errorf("%w: it has the field %s in two spellings", errSigBase, name)
		}
		values = make([]string, len(lines))
		for i, line := range lines {
			values[i] = textproto.TrimString(line)
		}
	}
	return values, nil
}

// setField gives a field one value, and removes any other that it has in any spelling.
func setField(header map[string][]string, name, value string) {
	dropField(header, name)
	header[textproto.CanonicalMIMEHeaderKey(name)] = []string{value}
}

func dropField(header map[string][]string, name string) {
	for key := range header {
		if strings.EqualFold(key, name) {
			delete(header, key)
		}
	}
}

// isFieldName reports whether name is a field's name in lower case (RFC 9110 §5.1).
func isFieldName(name string) bool {
	for i := range len(name) {
		if b := name[i]; (b < 'a' || b > 'z') && (b < '0' || b > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(b)) {
			return false
		}
	}
	return name != ""
}

// digestOf returns the field Content-Digest (RFC 9530) of a body with this SHA-256.
func digestOf(sum [sha256.Size]byte) string {
	return digestName + "=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

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
