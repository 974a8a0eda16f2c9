package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"omiappreg.org/keyrotation/client"
	"omiappreg.org/keyrotation/events"
)

// serviceEnv makes a Domain Service of the test's own program: its value is the serviceConfig.
const serviceEnv = "OMI_E2E_SERVICE"

const (
	signers      = 8
	tallyEach    = 20 * time.Millisecond
	serviceGrace = time.Minute // half of it is longer than any pause of a busy machine
)

// serviceConfig says what a service needs to know.
type serviceConfig struct {
	Target  string
	Folder  string
	NATS    string
	Origin  string
	Trust   events.PublicKey
	Signing []string // where its signatures are checked: URLs of POST /v1/verify
	// Replica is one of many: it signs from one goroutine and pauses in between, and rotates by a
	// schedule, if at all.
	Replica      bool
	RotateEachMS int64
}

// serviceProcess is a Domain Service as its developers write it: it signs from many goroutines, and
// rotates all the time. It says one line at a time on its standard output, which a kill can't take
// back:
//
//	verified N   signatures accepted so far
//	refused …    one was refused: this must not happen
//	told …       what its client tells, in a replica
type serviceProcess struct {
	cfg      serviceConfig
	target   events.Target
	verified atomic.Int64
	say      sync.Mutex
}

func serviceMain() int {
	s := &serviceProcess{}
	if err := s.run(); err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		return 1
	}
	return 0
}

func (s *serviceProcess) run() error {
	if err := json.Unmarshal([]byte(os.Getenv(serviceEnv)), &s.cfg); err != nil {
		return err
	}
	var err error
	if s.target, err = events.ParseTarget(s.cfg.Target); err != nil {
		return err
	}
	trust, err := events.NewTrust(s.cfg.Origin, s.cfg.Trust)
	if err != nil {
		return err
	}
	nc, err := nats.Connect(s.cfg.NATS, nats.MaxReconnects(-1), nats.Timeout(patience))
	if err != nil {
		return err
	}
	defer nc.Close()
	store, err := client.OpenFolder(s.cfg.Folder)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT)
	defer stop()
	c, err := client.Open(ctx, client.Config{Target: s.target, Store: store, Conn: nc, Trust: trust, Notify: s.tell})
	if err != nil {
		return err
	}
	defer c.Close()
	if s.cfg.Replica {
		return s.replicate(ctx, c)
	}
	var running sync.WaitGroup
	for i := range signers {
		running.Go(func() { s.sign(ctx, c.Signer(), s.cfg.Signing[i%len(s.cfg.Signing)]) })
	}
	running.Go(func() { s.tally(ctx) })
	err = s.rotate(ctx, c)
	running.Wait()
	return err
}

// rotate does it again and again.
func (s *serviceProcess) rotate(ctx context.Context, c *client.Client) error {
	for ctx.Err() == nil {
		if _, err := c.RotateWithGrace(ctx, serviceGrace); err != nil && ctx.Err() == nil {
			return err
		}
		if err := c.Settle(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// tell says what happens to a replica's key.
func (s *serviceProcess) tell(e client.Event) {
	if s.cfg.Replica {
		s.print("told %s", e)
	}
}

// replicate signs, and rotates by its schedule while it leads.
func (s *serviceProcess) replicate(ctx context.Context, c *client.Client) error {
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { s.tally(ctx) })
	running.Go(func() {
		for ctx.Err() == nil {
			s.signOnce(ctx, &http.Client{Timeout: patience}, c.Signer(), s.cfg.Signing[0])
			if err := c.Health(); err != nil {
				s.print("unhealthy %v", err)
			}
			<-time.After(tallyEach)
		}
	})
	if s.cfg.RotateEachMS == 0 {
		<-ctx.Done()
		return nil
	}
	return c.AutoRotate(ctx, client.Schedule{Every: time.Duration(s.cfg.RotateEachMS) * time.Millisecond})
}

// sign is one of the service's goroutines: it signs without a pause, and each signature is checked.
func (s *serviceProcess) sign(ctx context.Context, signer *client.Signer, url string) {
	web := &http.Client{Timeout: patience}
	for ctx.Err() == nil {
		s.signOnce(ctx, web, signer, url)
	}
}

func (s *serviceProcess) signOnce(ctx context.Context, web *http.Client, signer *client.Signer, url string) {
	answer, err := s.checkOnce(ctx, web, signer, url)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.print("refused: %v", err)
	case answer.Result != events.Accepted:
		s.print("refused: %+v", answer)
	default:
		s.verified.Add(1)
	}
}

func (s *serviceProcess) checkOnce(ctx context.Context, web *http.Client, signer *client.Signer, url string) (answer events.VerifyAnswer, err error) {
	message := make([]byte, 32)
	_, _ = rand.Read(message) // never fails
	signature, err := signer.Sign(nil, message, nil)
	if err != nil {
		return answer, err
	}
	body, err := json.Marshal(map[string]string{
		"app_id": s.target.App.String(), "service_id": s.target.Service.String(),
		"message": base64.RawURLEncoding.EncodeToString(message), "signature": base64.RawURLEncoding.EncodeToString(signature),
	})
	if err != nil {
		return answer, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return answer, err
	}
	response, err := web.Do(request)
	if err != nil {
		return answer, err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return answer, errors.New(response.Status)
	}
	err = json.UnmarshalRead(response.Body, &answer)
	return answer, err
}

func (s *serviceProcess) tally(ctx context.Context) {
	tick := time.NewTicker(tallyEach)
	defer tick.Stop()
	for ctx.Err() == nil {
		<-tick.C
		s.print("verified %d", s.verified.Load())
	}
}

func (s *serviceProcess) print(format string, args ...any) {
	s.say.Lock()
	defer s.say.Unlock()
	fmt.Println(strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
}
