package health

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/prometheus/client_golang/prometheus"

	"omiappreg.org/keyrotation/internal/printable"
	"omiappreg.org/keyrotation/internal/refusal"
	"omiappreg.org/keyrotation/internal/sqldb"
)

// Report is the state of a process's parts.
type Report struct {
	Ready bool `json:"ready"`
	// Live is false if a restart is the remedy.
	Live  bool    `json:"live"`
	Parts []State `json:"parts,omitzero"`
	// Remarks are lines for a person about a process that is ready.
	Remarks []string `json:"remarks,omitzero"`
}

// State is the state of a part.
type State struct {
	Name    string `json:"name"`
	Ready   bool   `json:"ready"`
	Problem string `json:"problem,omitzero"` // of a part that is ready: it works all the same

	restart bool
}

// Starting returns the report of a process that has no parts yet, because it waits for one.
func Starting(name, problem string) Report {
	return Report{Live: true, Parts: []State{{Name: name, Problem: problem}}}
}

func (r *Report) add(name string, p *Problem) {
	s := State{Name: name, Ready: true}
	if p != nil {
		s = State{Name: name, Ready: p.Remark, Problem: p.Text, restart: p.Restart}
	}
	r.Parts = append(r.Parts, s)
	r.Ready, r.Live = r.Ready && s.Ready, r.Live && !s.restart
}

// Text returns the report for a person: "ok" with the remarks, or a line for each part that fails.
func (r Report) Text() string {
	var text strings.Builder
	if r.Ready {
		text.WriteString("ok\n")
	}
	for _, s := range r.Parts {
		if s.Problem != "" && s.Ready == r.Ready {
			text.WriteString(printable.Text(s.Name+": "+s.Problem) + "\n")
		}
	}
	if r.Ready {
		for _, line := range r.Remarks {
			text.WriteString(printable.Text(line) + "\n")
		}
	}
	return text.String()
}

// ServeReady answers GET /readyz: in JSON if the caller asks for it, and otherwise in text.
func (r Report) ServeReady(w http.ResponseWriter, request *http.Request) {
	r.serve(w, request, r.Ready)
}

// ServeLive answers GET /livez: it fails if a restart is the remedy.
func (r Report) ServeLive(w http.ResponseWriter, request *http.Request) {
	live := Report{Ready: r.Live, Live: r.Live}
	for _, s := range r.Parts {
		if s.restart {
			live.Parts = append(live.Parts, s)
		}
	}
	live.serve(w, request, r.Live)
}

func (r Report) serve(w http.ResponseWriter, request *http.Request, well bool) {
	status := http.StatusServiceUnavailable
	if well {
		status = http.StatusOK
	}
	body, mediaType := []byte(r.Text()), "text/plain; charset=utf-8"
	if wantsJSON(request) {
		var err error
		if body, err = json.Marshal(r); err != nil {
			http.Error(w, "the report can't be written as JSON", http.StatusInternalServerError)
			return
		}
		body, mediaType = printable.JSON(append(body, '\n')), "application/json"
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

func wantsJSON(r *http.Request) bool {
	return r.URL.Query().Has("json") || strings.Contains(r.Header.Get("Accept"), "application/json")
}

// Connected is a connection to the broker.
type Connected interface {
	refusal.Limited
	IsConnected() bool
}

// Connection returns the part [Broker].
func Connection(conn Connected) Part {
	return Part{Name: Broker, Check: func(context.Context) error {
		if !conn.IsConnected() {
			return errors.New("the broker is away")
		}
		return refusal.Limits(conn)
	}}
}

// Pinged returns the part [Database]. Only the log gets the database's own words, unless the
// database can't be used any more.
func Pinged(db interface{ Ping(context.Context) error }) Part {
	return Part{Name: Database, Check: func(ctx context.Context) error {
		switch err := db.Ping(ctx); {
		case err == nil:
			return nil
		case errors.Is(err, sqldb.ErrReplaced):
			return &Problem{Text: sqldb.ErrReplaced.Error(), Cause: err, Restart: true}
		case errors.Is(err, sqldb.ErrFault):
			return Because(err, sqldb.ErrCorrupt.Error())
		case errors.Is(err, sqldb.ErrReadOnly):
			return Because(err, "the database takes no writes: "+
				"its server is a standby, or default_transaction_read_only is on")
		case errors.Is(err, sqldb.ErrBusy):
			return Because(err, "all sessions with the database are in use, and wait for it")
		case errors.Is(err, sqldb.ErrNoTables):
			return Because(err, "the database's tables are gone, or hidden from its role")
		case ctx.Err() != nil:
			return Because(err, "the database does not answer in time")
		default:
			return Because(err, "the database is away")
		}
	}}
}

// The checker is a [prometheus.Collector]: it shows the latest state of each part, and runs no
// check.
var _ prometheus.Collector = (*Checker)(nil)

//nolint:gochecknoglobals // it never changes
var readyDesc = prometheus.NewDesc("omi_ready",
	"1 if this part of the process could do its work at the last check, otherwise 0 (GET /readyz says why).", []string{"part"}, nil)

// Describe implements [prometheus.Collector].
func (*Checker) Describe(ch chan<- *prometheus.Desc) { ch <- readyDesc }

// Collect implements [prometheus.Collector].
func (c *Checker) Collect(ch chan<- prometheus.Metric) {
	ready := map[string]float64{}
	for _, s := range c.Last().Parts {
		if s.Ready {
			ready[s.Name] = 1
		}
	}
	for _, p := range c.parts {
		ch <- prometheus.MustNewConstMetric(readyDesc, prometheus.GaugeValue, ready[p.Name], p.Name)
	}
}
