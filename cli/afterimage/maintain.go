package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
)

func (w *world) maintainVerb() *cli.Command {
	return verb("maintain", "thin a group's history now", "NAME",
		"The daemon does it by itself, as \"maintenance:\" of the configuration says. What the ladder keeps no more is dropped, older segments are folded into sorted runs, and space is given back. Pins, open views, what a peer within its hold still needs, and what is younger than the lock stay. While the clock is further ahead than the time that has passed explains, nothing is thinned, and status says so.",
		[]string{"afterimage group maintain web --dry-run", "afterimage group maintain web"},
		[]cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be done, and do nothing"},
			&cli.BoolFlag{Name: "trust-clock", Usage: "the clock is right, though it has leapt ahead; what its time makes old goes for good"},
			&cli.BoolFlag{Name: "trust-site-log", Usage: "pins and peers are right again, after entries of the site log were lost"},
		}, w.groupMaintain)
}

func (w *world) groupMaintain(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	m := p.meter()
	r, err := api.Maintain(c.Context, control.MaintainRequest{Group: c.Args().First(), DryRun: c.Bool("dry-run"), TrustClock: c.Bool("trust-clock"), TrustSiteLog: c.Bool("trust-site-log")}, m.show)
	m.end()
	if err != nil {
		return err
	}
	return p.data(r, func() string { return p.maintainedText(r) })
}

func (p *printer) maintainedText(r control.Maintained) string {
	var b strings.Builder
	line := func(name, text string) { fmt.Fprintf(&b, "  %-8s %s\n", name, text) }
	if r.DryRun {
		return p.forecastText(r)
	}
	fmt.Fprintf(&b, "%s: maintained in %s\n", r.Group, seconds(r.Seconds))
	line("folded", size(r.Folded)+" of segments")
	line("merged", size(r.Merged)+" of runs")
	line("written", size(r.Written)+" of new runs")
	line("freed", size(r.Freed))
	line("journal", p.usageText(r.Usage))
	if r.Warning != "" {
		line("warning", p.colored(yellow, r.Warning))
	}
	return b.String()
}

// forecastText is what a dry run found.
func (p *printer) forecastText(r control.Maintained) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: nothing is changed; journal %s\n", r.Group, p.usageText(r.Usage))
	if len(r.Gone) == 0 {
		b.WriteString("the ladder and what is in use keep every point that is there\n")
		return b.String()
	}
	b.WriteString("would be thinned to the points of the ladder, once enough has gathered to be folded:\n")
	b.WriteString(p.keptTable(control.Points{Time: r.Time, Kept: r.Gone}, false))
	return b.String()
}

// usageText is what a journal takes, and how far back it reaches.
func (p *printer) usageText(u control.Usage) string {
	s := size(u.Used)
	if u.Quota > 0 {
		s += fmt.Sprintf(" of %s (%d%%)", size(u.Quota), percent(u.Used, u.Quota))
	}
	s += fmt.Sprintf(", %s, %s", plural(uint64(u.Segments), "segment"), plural(uint64(u.Runs), "run"))
	if u.Oldest != nil {
		s += fmt.Sprintf(", back to %s of %s", seqName(*u.Oldest), p.when(u.Oldest.Time))
	}
	return s
}

// percent is how much of whole part is, rounded down: 100% is full.
func percent(part, whole int64) int64 {
	return int64(float64(part) / float64(whole) * 100)
}
