package process

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/events"
	"omiappreg.org/keyrotation/internal/keyfile"
	"omiappreg.org/keyrotation/internal/keyformat"
	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/refusal"
)

const (
	reconnectWait   = 250 * time.Millisecond
	reconnectJitter = 250 * time.Millisecond
	flushWithin     = 2 * time.Second
)

// NATS says how a process reaches the broker: flags for a kong grammar.
type NATS struct {
	URL   string `name:"nats-url" env:"OMI_NATS_URL" default:"nats://127.0.0.1:4222" placeholder:"URL" help:"The NATS servers, separated by commas (${default})."`
	Creds string `name:"nats-creds" env:"OMI_NATS_CREDS" placeholder:"FILE" help:"A NATS credentials file, mode 0600."`
	NKey  string `name:"nats-nkey" env:"OMI_NATS_NKEY" placeholder:"FILE" help:"The nkey of a NATS user, from omi keygen --format nkey, mode 0600."`
	CA    string `name:"nats-ca" env:"OMI_NATS_CA" placeholder:"FILE" help:"A PEM file with the authority of the servers' TLS certificates."`
}

// Connect connects a process that runs for long. If the broker is not up yet, goes away, or does
// not let the process in, Connect waits for it, and the log says why.
func (n NATS) Connect(name string, log *slog.Logger) (*nats.Conn, error) {
	TendKeys(log, n.NKey, n.Creds)
	if open := n.exposed(); open != "" {
		log.Warn("credentials go to the broker unencrypted", "why", open)
	}
	w := &wait{nats: n, log: log, why: refusal.Teller{Log: log}}
	nc, err := n.connect(name, log, w.options()...)
	if code := (codedError{}); errors.As(err, &code) {
		return nil, err
	}
	if err != nil { // a broker that is not there is no error here
		return nil, Usage(fmt.Errorf("connect to the broker at %s: %w", n.redacted(), err))
	}
	return nc, nil
}

// ConnectNow connects a command that a person waits for. If the broker goes away later, the command
// waits for it as long as it runs.
func (n NATS) ConnectNow(ctx context.Context, name string, log *slog.Logger) (*nats.Conn, error) {
	if open := n.exposed(); open != "" {
		printable.Fprintf(os.Stderr, "%s: %s\n", name, open)
	}
	timeout := nats.DefaultTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	nc, err := n.connect(name, log, nats.Timeout(timeout), nats.MaxReconnects(-1),
		nats.ReconnectHandler(func(nc *nats.Conn) { tellReconnected(log, nc) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn("broker", "error", err) }),
	)
	if err == nil {
		return nc, nil
	}
	if code := (codedError{}); errors.As(err, &code) {
		return nil, err
	}
	if r, refused := refusal.Of(err); refused {
		return nil, Usagef("the broker at %s %s (%w): %s", n.redacted(), r.What, err, r.Do)
	}
	return nil, Unreachable(fmt.Errorf("no broker answers at %s (%w): is `omi dev` running, or is --nats-url another?", n.redacted(), err))
}

func (n NATS) connect(name string, log *slog.Logger, more ...nats.Option) (*nats.Conn, error) {
	if err := n.Check(); err != nil {
		return nil, err
	}
	options := append([]nats.Option{
		nats.Name(name),
		nats.ReconnectWait(reconnectWait), nats.ReconnectJitter(reconnectJitter, reconnectJitter),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("the broker is gone, waiting for it", "error", err)
			}
		}),
	}, more...)
	if n.Creds != "" {
		options = append(options, nats.UserCredentials(n.Creds))
	}
	if n.NKey != "" {
		key, err := n.key()
		if err != nil {
			return nil, err
		}
		public, err := keyformat.EncodePublic(key.Public(), keyformat.NKey)
		if err != nil {
			return nil, err
		}
		options = append(options, nats.Nkey(strings.TrimSpace(string(public)), func(nonce []byte) ([]byte, error) {
			return ed25519.Sign(key.Private(), nonce), nil
		}))
	}
	if n.CA != "" {
		options = append(options, nats.RootCAs(n.CA))
	}
	return nats.Connect(n.URL, options...)
}

func tellReconnected(log *slog.Logger, nc *nats.Conn) {
	log.Info("connected to the broker again", "server", nc.ConnectedServerName())
}

// Check returns an error for wrong flags, before the process starts anything. Without it, nats.go
// waits for a server whatever its URL, quotes the password of a URL that it can't read, and doesn't
// name the flags.
func (n NATS) Check() error {
	for server := range strings.SplitSeq(n.URL, ",") {
		if _, ok := parseServer(server); !ok {
			return Usagef("--nats-url: want nats://HOST:PORT (or tls://, ws://, wss://), several separated by commas, not %s", n.redacted())
		}
	}
	for _, file := range []struct{ flag, path, mark, want string }{
		{"--nats-creds", n.Creds, "-----BEGIN ", "NATS credentials, as nsc generate creds prints them"},
		{"--nats-ca", n.CA, "-----BEGIN CERTIFICATE-----", "certificate in PEM"},
	} {
		if file.path == "" {
			continue
		}
		content, err := os.ReadFile(file.path)
		if err != nil {
			return Usagef("%s: %w", file.flag, err)
		}
		if !bytes.Contains(content, []byte(file.mark)) {
			return Usagef("%s: %s holds no %s", file.flag, file.path, file.want)
		}
	}
	if n.Creds != "" { // they contain a private key
		if err := checkMode("--nats-creds", n.Creds); err != nil {
			return err
		}
	}
	if n.NKey == "" {
		return nil
	}
	if n.Creds != "" {
		return Usagef("--nats-nkey and --nats-creds are two ways to say who this is: give one of them")
	}
	_, err := n.key()
	return err
}

// TendKeys closes the files of a process's private keys to their group, if a mount has opened them,
// and logs who else can reach them.
func TendKeys(log *slog.Logger, paths ...string) {
	if done := keyfile.Tighten(paths...); done != "" {
		log.Warn("a private key was readable by its group", "done", done)
	}
	for _, why := range []string{keyfile.Foreign(paths...), keyfile.OpenFolders(paths...)} {
		if why != "" {
			log.Warn("a private key is within others' reach", "why", why)
		}
	}
}

// ReadKey reads the key's file that a flag names. If it is missing, the error says how to get one.
func ReadKey(flag, path, origin string) (events.SigningKey, error) {
	key, err := keyfile.Read(path)
	if errors.Is(err, keyfile.ErrMissing) {
		err = fmt.Errorf("%w: %s", err, origin)
	}
	if err != nil {
		return key, Usagef("%s: %w", flag, err)
	}
	return key, nil
}

// checkMode refuses a flag's file that other users can read.
func checkMode(flag, path string) error {
	info, err := os.Stat(path)
	if err == nil {
		err = keyfile.CheckMode(path, info)
	}
	if err != nil {
		return Usagef("%s: %w", flag, err)
	}
	return nil
}

// key reads the user's nkey. It accepts any form of a key, because a user's nkey is an Ed25519 key.
func (n NATS) key() (events.SigningKey, error) {
	if err := checkMode("--nats-nkey", n.NKey); err != nil {
		return events.SigningKey{}, err
	}
	content, err := os.ReadFile(n.NKey)
	if err != nil {
		return events.SigningKey{}, Usagef("--nats-nkey: %w", err)
	}
	key, err := keyformat.Parse(content)
	switch {
	case err != nil:
		return events.SigningKey{}, Usagef("--nats-nkey: %s: %w", n.NKey, err)
	case key.Private.IsZero():
		return events.SigningKey{}, Usagef("--nats-nkey: %s holds a public key: name the file of its private half", n.NKey)
	}
	return key.Private, nil
}

// parseServer reads one server's URL, which may lack its scheme.
func parseServer(server string) (*url.URL, bool) {
	server = strings.TrimSpace(server)
	if !strings.Contains(server, "://") {
		server = "nats://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return nil, false
	}
	switch u.Scheme {
	case "nats", "tls", "ws", "wss":
	default:
		return u, false
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return u, false
		}
	}
	host := u.Hostname()
	return u, host != "" && (!strings.Contains(host, ":") || strings.HasPrefix(u.Host, "["))
}

// exposed says what can happen to credentials for a broker on another machine that is named without
// TLS. It returns an empty text if all is well. Such a server may still ask for TLS, but an
// attacker on the way can make the client do without.
func (n NATS) exposed() string {
	for server := range strings.SplitSeq(n.URL, ",") {
		u, ok := parseServer(server)
		if !ok || n.CA != "" || u.Scheme == "tls" || u.Scheme == "wss" || isHere(u.Hostname()) || n.Creds == "" && n.NKey == "" && u.User == nil {
			continue
		}
		return fmt.Sprintf("%s is another machine's broker, and nothing protects the credentials on the way there, nor what is sent and heard: "+
			"name it by tls:// in --nats-url, or by --nats-ca the authority of its certificate", u.Host)
	}
	return ""
}

// isHere reports whether a host is this machine, by its loopback address. It does not resolve
// names.
func isHere(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}

// redacted returns the URL without its secrets.
func (n NATS) redacted() string {
	servers := strings.Split(n.URL, ",")
	for i, server := range servers {
		// there may be a password in it, even behind the host if a slash came before it
		servers[i] = "(not a URL)"
		if u, _ := parseServer(server); u != nil && !strings.Contains(u.Opaque+u.Path+u.RawQuery+u.Fragment, "@") {
			if _, password := u.User.Password(); u.User != nil && !password {
				u.User = url.User("xxxxx") // a token, which is the whole user part
			}
			servers[i] = u.Redacted()
		}
	}
	return strings.Join(servers, ",")
}

// Close sends pending messages, such as acknowledgements, and closes the connection.
func Close(nc *nats.Conn, log *slog.Logger) {
	if nc.IsConnected() {
		if err := nc.FlushTimeout(flushWithin); err != nil {
			log.Debug("flush", "error", err)
		}
	}
	nc.Close()
}

// wait tells the log why a process has no broker, and what a broker that it has does not permit:
// each reason once until it is connected again, and now and then while it lasts.
type wait struct {
	nats NATS
	log  *slog.Logger
	why  refusal.Teller
	conn atomic.Pointer[nats.Conn] // nil until the first try has failed
}

func (w *wait) options() []nats.Option {
	return []nats.Option{
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectErrHandler(func(nc *nats.Conn, err error) {
			w.conn.Store(nc)
			w.tell(err)
		}),
		// If a broker answers, and does not let us in, nats.go reports that only after a first
		// connection. Before that, the error is only here.
		nats.CustomReconnectDelay(func(int) time.Duration {
			if nc := w.conn.Load(); nc != nil {
				w.tell(nc.LastError())
			}
			return reconnectWait + rand.N(reconnectJitter) //nolint:gosec // it only spreads the tries
		}),
		nats.ErrorHandler(func(nc *nats.Conn, _ *nats.Subscription, err error) {
			if _, refused := refusal.Of(err); refused || !nc.IsConnected() {
				w.tell(err)
			} else {
				w.log.Warn("broker", "error", err)
			}
		}),
		nats.ConnectHandler(func(nc *nats.Conn) {
			w.why.Forget()
			w.log.Info("connected to the broker", "server", nc.ConnectedServerName())
			w.tellLimits(nc)
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			w.why.Forget()
			tellReconnected(w.log, nc)
			w.tellLimits(nc)
		}),
	}
}

func (w *wait) tell(err error) {
	if err == nil || errors.Is(err, nats.ErrNoServers) { // the next try says more
		return
	}
	w.why.Tell(err, "url", w.nats.redacted())
}

// tellLimits says of a broker that lets us in what it can't carry.
func (w *wait) tellLimits(nc *nats.Conn) {
	if err := refusal.Limits(nc); err != nil {
		w.tell(err)
	}
}
