package bench

import (
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"
)

// progress shows the progress to a person at a terminal, and nothing to others.
type progress struct {
	terminal bool
	bar      *progressbar.ProgressBar // nil: no bar is shown
}

func newProgress() *progress {
	return &progress{terminal: isatty.IsTerminal(os.Stderr.Fd())}
}

// phase ends the bar of the phase before, and shows one for this phase. A total of -1 is unknown.
func (p *progress) phase(what string, total int) {
	p.end()
	if !p.terminal {
		return
	}
	p.bar = progressbar.NewOptions(total,
		progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription(what), progressbar.OptionClearOnFinish(),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetWidth(30),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetPredictTime(true))
}

// set shows how much is done.
func (p *progress) set(done int64) {
	if p.bar != nil {
		_ = p.bar.Set64(done) // a lost terminal is no reason to stop
	}
}

func (p *progress) end() {
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar = nil
	}
}
