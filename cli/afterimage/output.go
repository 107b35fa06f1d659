package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// printer renders data and everything else.
type printer struct {
	*world
	json    bool
	noColor bool
}

func (w *world) printer(c *cli.Context) *printer {
	return &printer{world: w, json: c.String("output") == "json", noColor: c.Bool("no-color")}
}

// data prints v as one JSON object, or whatever table prints.
func (p *printer) data(v any, table func() string) error {
	if !p.json {
		fprintf(p.stdout, "%s", table())
		return nil
	}
	return json.NewEncoder(p.stdout).Encode(v)
}

// note is for people only: a line on stderr, nothing with -o json.
func (p *printer) note(format string, args ...any) {
	if !p.json {
		fprintf(p.stderr, format+"\n", args...)
	}
}

// resolved echoes what --at came to.
func (p *printer) resolved(group, at string, pt control.Point) {
	p.note("%s as of %s: point %s, %s", group, at, seqName(pt), p.when(pt.Time))
}

func seqName(pt control.Point) string { return fmt.Sprintf("#%d.%d", pt.Epoch, pt.Seq) }

// fail prints an error: code, what, why, what to do.
func (p *printer) fail(e *fault.Error) {
	if p.json {
		_ = json.NewEncoder(p.stderr).Encode(map[string]any{"error": e})
		return
	}
	if problems := problemsIn(e); len(problems) > 0 {
		fprintf(p.stderr, "%s", problems.Error())
		return
	}
	title := ""
	if x, ok := fault.Lookup(e.Code); ok {
		title = x.Title
	}
	fprintf(p.stderr, "error %s: %s\n", e.Code, title)
	why := strings.TrimPrefix(e.Why, e.What+": ") // causes from below often begin with what was attempted
	for _, l := range []struct{ label, text string }{{"what", e.What}, {"why", why}, {"do", e.Advice()}} {
		if l.text != "" {
			fprintf(p.stderr, "  %-5s %s\n", l.label+":", l.text)
		}
	}
}

// problemsIn is every fault of a file that e is about; none where it is about something
// else. Of an error that a daemon answered only what JSON carries is left.
func problemsIn(e *fault.Error) config.Problems {
	if problems, ok := e.Evidence.(config.Problems); ok {
		return problems
	}
	if _, ok := e.Evidence.([]any); !ok {
		return nil
	}
	var problems config.Problems
	text, err := json.Marshal(e.Evidence)
	if err != nil || json.Unmarshal(text, &problems) != nil {
		return nil
	}
	if slices.ContainsFunc(problems, func(x config.Problem) bool { return x.Line == 0 || x.What == "" || x.File == "" }) {
		return nil
	}
	return problems
}

// when is a time, RFC 3339 with zone, to the millisecond.
func (p *printer) when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.In(p.zone).Format("2006-01-02T15:04:05.000Z07:00")
}

// Colours of state words. They never carry meaning alone.
const (
	green  = "32"
	yellow = "33"
	red    = "31"
)

func (p *printer) colored(code, s string) string {
	if p.noColor || !p.stdoutTTY || p.getenv("NO_COLOR") != "" || p.getenv("TERM") == "dumb" {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// table is rows under a head; columns are as wide as their widest cell. On a
// terminal that is too narrow for that each row is a block of lines instead.
type table struct {
	rows  [][]string
	tint  func(column int, cell string) string // colours a cell after padding; may be nil
	width int                                  // of the terminal; 0: unbounded
}

func (p *printer) newTable(head ...string) *table {
	t := &table{rows: [][]string{head}}
	if p.stdoutTTY && p.columns != nil {
		t.width = p.columns()
	}
	return t
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) String() string {
	width := make([]int, len(t.rows[0]))
	for _, r := range t.rows {
		for i, c := range r {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	whole := -2
	for _, w := range width {
		whole += w + 2
	}
	var b strings.Builder
	if t.width > 0 && whole > t.width {
		t.blocks(&b)
		return b.String()
	}
	for n, r := range t.rows {
		for i, c := range r {
			shown := c
			if t.tint != nil && n > 0 {
				shown = t.tint(i, c)
			}
			b.WriteString(shown)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(c)+2))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// blocks writes each row as its first cell and, below it, a line for each other one
// that says something.
func (t *table) blocks(b *strings.Builder) {
	head, label := t.rows[0], 0
	for _, h := range head[1:] {
		label = max(label, utf8.RuneCountInString(h))
	}
	for _, r := range t.rows[1:] {
		shown := func(i int) string {
			if t.tint != nil {
				return t.tint(i, r[i])
			}
			return r[i]
		}
		fmt.Fprintf(b, "%s %s\n", head[0], shown(0))
		for i := 1; i < len(r); i++ {
			if r[i] != "-" && r[i] != "" {
				fmt.Fprintf(b, "  %-*s  %s\n", label, head[i], shown(i))
			}
		}
	}
}

// size is bytes in IEC units.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 && n > -1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for ; (f >= 1023.95 || f <= -1023.95) && i < len(units)-1; i++ {
		f /= 1024
	}
	if f == float64(int64(f)) {
		return fmt.Sprintf("%d %ciB", int64(f), units[i])
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// seconds is a span for people: 0.35s, 12s, 4m10s, 26h3m, 12d4h.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case s < 10:
		return fmt.Sprintf("%.2fs", s)
	case s < 60:
		return fmt.Sprintf("%.0fs", s)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 72*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func plural(n uint64, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
