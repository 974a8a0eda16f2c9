package main

import (
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"
)

// benchProgress shows a person at a terminal how far it is; to all others it shows nothing.
type benchProgress struct {
	terminal bool
	bar      *progressbar.ProgressBar // nil: none is shown
}

func newBenchProgress() *benchProgress {
	return &benchProgress{terminal: isatty.IsTerminal(os.Stderr.Fd())}
}

// phase ends the bar of what was done before, and shows one for what is done next; total -1: nobody knows how much it is.
func (p *benchProgress) phase(what string, total int) {
	p.end()
	if !p.terminal {
		return
	}
	p.bar = progressbar.NewOptions(total,
		progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription(what), progressbar.OptionClearOnFinish(),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetWidth(30),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionSetPredictTime(true))
}

// set says how much is done.
func (p *benchProgress) set(done int64) {
	if p.bar != nil {
		_ = p.bar.Set64(done) // a terminal that went away is no reason to stop
	}
}

func (p *benchProgress) end() {
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar = nil
	}
}
