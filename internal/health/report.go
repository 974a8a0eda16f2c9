package health

import (
	"net/http"
	"strings"

	"github.com/go-json-experiment/json"

	"omiappreg.org/keyrotation/internal/printable"
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
