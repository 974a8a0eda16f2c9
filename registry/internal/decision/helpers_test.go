package decision

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"omiappreg.org/keyrotation/events"
)

const (
	testOrigin = "omiappreg.org"
	testNow    = 1_705_412_610
)

// testKey is the registry's in tests.
var testKey = events.GenerateSigningKey()

// inOrder calls do for one number after the other.
func inOrder(n, _ int, do func(i int)) {
	for i := range n {
		do(i)
	}
}

// numbered returns a function whose results are the same in each test.
func numbered() func() events.Nonce {
	n := 0
	return func() events.Nonce {
		n++
		nonce, err := events.ParseNonce(fmt.Sprintf("nonce-%016d", n))
		if err != nil {
			panic(err)
		}
		return nonce
	}
}

// book is what a registry keeps between two batches, in memory.
type book struct {
	t      testing.TB
	issuer Issuer
	now    int64
	budget VerificationBudget

	masters   map[events.AppID]events.PublicKey
	services  map[events.Target]*Service
	taken     map[events.PublicKey]bool
	committed map[RequestID]Prior
	past      map[events.Target][]PastKey // newest last
	refused   map[events.Target]refusedNonces
	uses      map[events.AppID]*AppUse
	resets    map[events.Target]int64
}

// refusedNonces implements Refusals.
type refusedNonces map[events.Nonce]bool

func (r refusedNonces) MayHaveRefused(nonce events.Nonce, _, _ int64) bool { return r[nonce] }

func newBook(t testing.TB, rules Rules) *book {
	t.Helper()
	rules.Origin = testOrigin
	if rules.Grace == 0 {
		rules.Grace, rules.Skew = 300, 300
	}
	if rules.RequireProof == "" {
		rules.RequireProof = events.ProofsOwn
	}
	return &book{
		t: t, now: testNow, issuer: Issuer{Rules: rules, Key: testKey, NewNonce: numbered(), Parallel: inOrder},
		masters: map[events.AppID]events.PublicKey{}, services: map[events.Target]*Service{},
		taken: map[events.PublicKey]bool{}, committed: map[RequestID]Prior{}, past: map[events.Target][]PastKey{},
		refused: map[events.Target]refusedNonces{}, uses: map[events.AppID]*AppUse{}, resets: map[events.Target]int64{},
	}
}

// state returns all that is known. It shares nothing with the book that a decision changes.
func (k *book) state() *State {
	st := NewState()
	st.Mode = Pessimistic
	maps.Copy(st.Services, k.services)
	maps.Copy(st.Masters, k.masters)
	maps.Copy(st.TakenKeys, k.taken)
	maps.Copy(st.Committed, k.committed)
	return st
}

// decideOn takes requests through the whole way of a batch, and keeps nothing of it.
func (k *book) decideOn(st *State, todo []Incoming) *Batch {
	todo = slices.Clone(todo)
	MarkOutproved(todo, k.issuer.Rules.Origin)
	b := NewBatch(k.issuer, time.Unix(k.now, 0), st, todo)
	b.Decide()
	for {
		for groups := b.Unconfirmed(); len(groups) > 0; groups = b.Unconfirmed() {
			b.Correct(groups, k.state())
		}
		var again []*Group
		for _, g := range b.Groups {
			if g.NeedsRefusals {
				st.Refusals[g.Target] = k.refused[g.Target]
				again = append(again, g)
			}
		}
		if len(again) == 0 {
			again = k.applyLimits(b)
		}
		if len(again) == 0 {
			break
		}
		b.DecideAgain(again)
	}
	targets, sequences := b.NeedEarlierKeys(&k.budget)
	b.EarlierKeys = map[events.Target][]PastKey{}
	for i, t := range targets {
		for _, past := range k.past[t] {
			if past.Sequence >= k.services[t].Sequence-sequences[i] {
				b.EarlierKeys[t] = append(b.EarlierKeys[t], past)
			}
		}
	}
	b.SignRefusals()
	return b
}

func (k *book) applyLimits(b *Batch) []*Group {
	uses, resets := map[events.AppID]*AppUse{}, map[*Group]int64{}
	for app, use := range k.uses {
		uses[app] = new(*use)
	}
	for _, g := range b.Groups {
		resets[g] = k.resets[g.Target]
	}
	return b.ApplyLimits(b.Countable(), uses, resets)
}

// keep does what a commit does.
func (k *book) keep(b *Batch) {
	for _, g := range b.Groups {
		for i := range g.Outcomes {
			o := &g.Outcomes[i]
			r := o.In.Request
			if o.Verdict == Refused {
				if k.refused[g.Target] == nil {
					k.refused[g.Target] = refusedNonces{}
				}
				k.refused[g.Target][r.Nonce] = true
			}
			if o.Verdict != Committed {
				continue
			}
			k.committed[RequestID{g.Target, r.Nonce}] = Prior{r.Digest(), o.ReceiptNonce, o.ReceiptBytes, o.Event.Event, r.NewKey}
			if !o.Event.OldKey.IsZero() {
				k.past[g.Target] = append(k.past[g.Target], PastKey{o.Event.OldKey, o.Event.Sequence - 1})
			}
			if !r.NewKey.IsZero() {
				k.taken[r.NewKey] = true
			}
			if r.Kind == events.Reset {
				k.resets[g.Target] = o.Event.Timestamp
			}
			if use := k.uses[g.Target.App]; o.Event.Sequence == 1 {
				use.Services++
			} else if o.Counts {
				_ = use.Count(Rules{}, &o.In, false)
			}
		}
		if g.Changed() {
			k.services[g.Target] = new(g.Service)
			k.services[g.Target].ID = 1
		}
	}
}

// decideAll decides requests in one batch, keeps the result, and returns the outcomes in the order of the requests.
func (k *book) decideAll(list ...request) []Outcome {
	k.t.Helper()
	return k.decideIncoming(incomingOf(list))
}

func (k *book) decideIncoming(todo []Incoming) []Outcome {
	k.t.Helper()
	b := k.decideOn(k.state(), todo)
	k.keep(b)
	return inOrderOf(b, len(todo))
}

func inOrderOf(b *Batch, n int) []Outcome {
	outcomes := make([]Outcome, n)
	for _, g := range b.Groups {
		for _, o := range g.Outcomes {
			outcomes[o.In.Index] = o
		}
	}
	return outcomes
}

// decideOne decides one message that was stored at this time.
func (k *book) decideOne(subject string, payload []byte, storedAt int64) Outcome {
	k.t.Helper()
	return k.decideIncoming([]Incoming{NewIncoming(subject, payload, storedAt, 0)})[0]
}

func incomingOf(list []request) []Incoming {
	var todo []Incoming
	for i, r := range list {
		todo = append(todo, NewIncoming(r.draft.Subject(), r.payload, r.draft.Timestamp, i))
	}
	return todo
}

// developer is an app's developer with one service at hand, and its keys.
type developer struct {
	t       testing.TB
	target  events.Target
	master  events.SigningKey
	current events.SigningKey
	now     func() time.Time
}

// developer adds an app.
func (k *book) developer(app, service string) *developer {
	k.t.Helper()
	d := &developer{t: k.t, master: events.GenerateSigningKey(), now: func() time.Time { return time.Unix(k.now, 0) }}
	var err error
	if d.target, err = events.ParseTarget(app + "." + service); err != nil {
		k.t.Fatal(err)
	}
	k.masters[d.target.App] = d.master.Public()
	k.taken[d.master.Public()] = true
	k.uses[d.target.App] = &AppUse{}
	return d
}

// another returns the same developer with another service of the same app.
func (d *developer) another(service string) *developer {
	other := *d
	other.target.Service, _ = events.ParseServiceID(service)
	other.current = events.SigningKey{}
	return &other
}

// request is a signed request on its way.
type request struct {
	draft   events.Draft
	payload []byte
}

func (d *developer) sign(kind events.RequestKind, newKey, by events.SigningKey) request {
	d.t.Helper()
	draft := events.Draft{
		Kind: kind, Target: d.target, Timestamp: d.now().Unix(), Nonce: events.NewNonce(), NewKey: newKey, Origin: testOrigin,
	}
	payload, err := draft.Sign(by)
	if err != nil {
		d.t.Fatal(err)
	}
	return request{draft, payload}
}

// bind, rotate, reset and revoke return a request that stands, and go on with the new key.
func (d *developer) bind() request   { return d.next(events.Binding, d.master) }
func (d *developer) reset() request  { return d.next(events.Reset, d.master) }
func (d *developer) rotate() request { return d.next(events.Rotation, d.current) }

func (d *developer) revoke() request {
	defer func() { d.current = events.SigningKey{} }()
	return d.sign(events.Revocation, events.SigningKey{}, d.master)
}

func (d *developer) next(kind events.RequestKind, by events.SigningKey) request {
	d.t.Helper()
	newKey := events.GenerateSigningKey()
	r := d.sign(kind, newKey, by)
	d.current = newKey
	return r
}
