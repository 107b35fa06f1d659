package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/config"
)

func (w *world) configCommand() *cli.Command {
	return noun("config", "judge and show the configuration",
		verb("check", "find every fault of the configuration, with line and column", "",
			"Nothing outside the file is looked at: a file can be checked on another machine. It also says how each group's history will be kept.\n\n"+historyHelp+"\n\n"+sendingHelp,
			[]string{"afterimage config check --config /etc/afterimage/afterimage.yml"}, nil, w.configCheck),
		verb("show", "print the configuration", "",
			"Secrets in machine arguments are masked.",
			[]string{"afterimage config show --resolved"},
			[]cli.Flag{&cli.BoolFlag{Name: "resolved", Usage: "with defaults and absolute paths spelt out"}}, w.configShow),
		verb("sample", "print a configuration with every key, each with what it means", "",
			"It can be checked as it is, and what a site does not need taken out.",
			[]string{"afterimage config sample"}, nil,
			func(c *cli.Context) error { return w.sample(c, config.Sample) }),
	)
}

// sample prints a file to begin with.
func (w *world) sample(c *cli.Context, text string) error {
	return w.printer(c).data(map[string]any{"text": text}, func() string { return text })
}

func (w *world) configCheck(c *cli.Context) error {
	path := c.String("config")
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	resolved, err := cfg.JSON()
	if err != nil {
		return err
	}
	v := map[string]any{"ok": true, "file": path, "site": cfg.Site, "groups": len(cfg.Groups), "peers": len(cfg.Peers), "resolved": resolved}
	return w.printer(c).data(v, func() string {
		return fmt.Sprintf("%s: ok: site %s, %s, %s\n", path, cfg.Site, plural(uint64(len(cfg.Groups)), "group"), plural(uint64(len(cfg.Peers)), "peer")) + retentionText(cfg)
	})
}

const historyHelp = `How history thins with age is a group's "history:", a ladder; this is the default:
   history: [{every: write, for: 24h}, {every: 1m, for: 7d}, {every: 1h, for: 30d}]
keeps each write for a day, then a point a minute up to an age of a week, then one
an hour up to 30 days; of what is older only pins and what is in use. "for: ever"
in the last rung never ends it. Spans have s, m, h, d, w or y. Beside it:
   lock: 12h          nothing younger is thinned, not even for want of room
   quota: 500GiB      of the journal on disk; full: thin, warn, then a gap
   warn: [80, 90]     per cent of the quota at which status warns
   maintenance: {every: 1m, rate: 50MiB}   from 80% of the quota on: at once, unbounded
and of a peer, for how long and how much history waits for it while it is away:
   hold: {for: 72h, bytes: 200GiB}`

const sendingHelp = `How what is captured goes to peers is said of a group and of a peer. Of a group:
   peers: [b, c]        who gets it from its primary; of those a replica takes it
   relay: [c]           which of them get it from this site while it is a replica,
                        of what it receives itself: a -> b -> c. An RPO at c counts
                        from what a captured. A primary's own session goes first
   priority: 4          its share of a link beside other groups: one of 4 gets twice
                        what one of 2 gets; without it 1, at most 100
   bwlimit: "08:00,10M 19:00,off"          of all that is sent of it; tz: is its zone
and of a peer:
   pack: auto           frames are packed on their way where that pays; off; always
   coalesce: {behind: 10m}  further behind it gets a delta; what lies between is no
                        point there
   bwlimit: / limit:    of all that is sent to it
   transport: auto      quic, and tls where UDP does not get through; quic; tls
   connections: 16      that a session uses at most`

// retentionText says how history will be kept.
func retentionText(cfg *config.Config) string {
	var b strings.Builder
	line := func(name, text string) { fmt.Fprintf(&b, "  %-12s %s\n", name, text) }
	for _, g := range cfg.Groups {
		fmt.Fprintf(&b, "%s\n", g.Ref())
		line("history", ladderText(g.History))
		if first := g.History[0]; first.Every != config.EveryWrite {
			line("", fmt.Sprintf("note: no rung keeps every write: between points every %s nothing stays", first.Every))
		}
		lock := "none"
		if g.Lock > 0 {
			lock = g.Lock.String()
		}
		line("lock", lock)
		quota := "none: it may fill the disk"
		if g.Quota > 0 {
			var at []string
			for _, p := range g.Warn {
				at = append(at, p.String())
			}
			quota = fmt.Sprintf("%s, warns at %s", size(int64(g.Quota)), strings.Join(at, " and "))
		}
		line("quota", quota)
		line("maintenance", fmt.Sprintf("every %s, up to %s/s", g.Maintenance.Every, size(int64(g.Maintenance.Rate))))
	}
	for _, p := range cfg.Peers {
		fmt.Fprintf(&b, "peer %s\n", p.Name)
		hold := "for " + p.Hold.For.String()
		if p.Hold.Bytes > 0 {
			hold += ", up to " + size(int64(p.Hold.Bytes))
		}
		line("hold", hold)
	}
	return b.String()
}

// ladderText is a ladder as a person says it.
func ladderText(rungs []config.Rung) string {
	var parts []string
	for _, r := range rungs {
		parts = append(parts, r.String())
	}
	return strings.Join(parts, ", then ")
}

func (w *world) configShow(c *cli.Context) error {
	path := c.String("config")
	read := config.LoadAsWritten
	if c.Bool("resolved") {
		read = config.Load
	}
	cfg, err := read(path)
	if err != nil {
		return err
	}
	text, err := cfg.YAML()
	if err != nil {
		return err
	}
	v, err := cfg.JSON()
	if err != nil {
		return err
	}
	return w.printer(c).data(v, func() string { return string(text) })
}
