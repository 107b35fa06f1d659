package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/novacron/afterimage/site/control"
)

// lineEvery is how often progress is told where there is no terminal.
const lineEvery = 10 * time.Second

// meter shows progress three ways: a bar on a terminal, a line every ten seconds
// elsewhere, JSON lines with -o json. It belongs to one goroutine.
type meter struct {
	p     *printer
	begun time.Time
	step  string
	told  time.Time
	open  bool // the bar's line is not ended
}

func (p *printer) meter() *meter { return &meter{p: p, begun: p.now()} }

// show renders pr; a new step is always told.
func (m *meter) show(pr control.Progress) {
	now := m.p.now()
	fresh := pr.Step != m.step
	if fresh {
		m.step, m.begun = pr.Step, now
	}
	pr.Remaining = remaining(now.Sub(m.begun), pr.Done, pr.Total)
	every := lineEvery
	if m.p.stderrTTY || m.p.json {
		every = 200 * time.Millisecond
	}
	if !fresh && now.Sub(m.told) < every && pr.Done < pr.Total {
		return
	}
	m.told = now
	switch {
	case m.p.json:
		_ = json.NewEncoder(m.p.stderr).Encode(map[string]any{"progress": pr})
	case m.p.stderrTTY:
		if fresh {
			m.end()
		}
		fprintf(m.p.stderr, "\r\x1b[K%s", describe(pr, true))
		m.open = true
	default:
		fprintf(m.p.stderr, "%s\n", describe(pr, false))
	}
}

// end ends the bar's line.
func (m *meter) end() {
	if m.open {
		fprintf(m.p.stderr, "\n")
		m.open = false
	}
}

func remaining(spent time.Duration, done, total int64) *float64 {
	if done <= 0 || total <= 0 || spent <= 0 {
		return nil
	}
	s := spent.Seconds() * float64(total-done) / float64(done)
	return &s
}

func describe(pr control.Progress, bar bool) string {
	if pr.Total <= 0 {
		return pr.Step
	}
	amount := size
	if pr.Unit == "ms" {
		amount = func(n int64) string { return seconds(float64(n) / 1000) }
	}
	pr.Done = min(pr.Done, pr.Total)
	s := fmt.Sprintf("%s %3d%%", pr.Step, pr.Done*100/pr.Total)
	if pr.Unit != "steps" { // only their part says something
		s += fmt.Sprintf(" %s of %s", amount(pr.Done), amount(pr.Total))
	}
	if bar {
		const width = 24
		full := int(pr.Done * width / pr.Total)
		s = fmt.Sprintf("%s [%s%s]", s, strings.Repeat("=", full), strings.Repeat(" ", width-full))
	}
	if pr.Remaining != nil && pr.Done < pr.Total {
		s += ", " + seconds(*pr.Remaining) + " left"
	}
	return s
}
