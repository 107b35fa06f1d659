package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) verifyCommand() *cli.Command {
	return verb("verify", "read a group's whole journal and check every byte", "NAME",
		"Damage is named with file, offset and records, and remembered: point list calls the points invalid that it spoils, the others stay usable. With --repair the damaged frames are fetched from a peer that holds them; they are the same bytes at every site. Exit 16 when damage is left.",
		[]string{"afterimage verify web", "afterimage verify web --repair --from b", "afterimage verify web --rate 50MiB -o json"},
		[]cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "fetch what is damaged from a peer"},
			&cli.StringFlag{Name: "from", Usage: "`PEER` to repair from; default every peer of the group, in turn"},
			&cli.StringFlag{Name: "rate", Usage: "`BYTES` per second read at most, as 50MiB; default as fast as the disk"},
		}, w.verify)
}

func (w *world) verify(c *cli.Context) error {
	q := control.VerifyRequest{Group: c.Args().First(), Repair: c.Bool("repair"), From: c.String("from")}
	if q.From != "" && !q.Repair {
		return usage("--from says where to repair from: add --repair")
	}
	if rate := c.String("rate"); rate != "" {
		var b config.Bytes
		if err := b.UnmarshalText([]byte(rate)); err != nil || b <= 0 {
			return usage("--rate %q is no number of bytes", rate)
		}
		q.BytesPerSecond = int64(b)
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	m := p.meter()
	r, err := api.Verify(c.Context, q, m.show)
	m.end()
	if err != nil {
		return err
	}
	if err := p.data(r, func() string { return p.verifiedText(r) }); err != nil {
		return err
	}
	if n := len(r.Left); n > 0 {
		return fault.New(fault.DamageLeft, "verify "+r.Group, "%s left", plural(uint64(n), "damaged place"))
	}
	return nil
}

func (p *printer) verifiedText(r control.Verified) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s read in %s\n", r.Group, size(r.Bytes), seconds(r.Seconds))
	if len(r.Found) == 0 {
		b.WriteString("every byte is as it was written\n")
		return b.String()
	}
	t := p.newTable("FILE", "OFFSET", "RECORDS", "VOLUME", "DAMAGE")
	for _, d := range r.Found {
		records := fmt.Sprint(d.First)
		if d.Last > d.First {
			records += fmt.Sprintf("-%d", d.Last)
		}
		what := d.What
		if d.Mended {
			what += " (mended)"
		}
		t.row(d.File, fmt.Sprint(d.Offset), records, d.Volume, what)
	}
	b.WriteString(t.String())
	for _, x := range r.Repairs {
		fmt.Fprintf(&b, "repaired from %s: %s, %s of %s\n", x.Peer, plural(uint64(x.Files), "file"), plural(uint64(x.Frames), "frame"), size(x.Bytes))
		if x.Error != "" {
			fmt.Fprintf(&b, "not repaired from %s: %s\n", x.Peer, x.Error)
		}
	}
	for _, i := range r.Invalid {
		fmt.Fprintf(&b, "invalid: points #%d to #%d: %s\n", i.First, i.Last, i.Why)
	}
	if len(r.Left) == 0 {
		b.WriteString("all is repaired\n")
	}
	return b.String()
}

func (w *world) recoverVerb() *cli.Command {
	return verb("recover", "open a journal of which durable records are lost", "NAME",
		"A journal that holds less than was durable does not open by itself: a lost tail, a file put back from an older copy, a missing segment, a damaged site log. This cuts it where it last verifies. Nothing is deleted: the cut bytes are kept in lost/ beside the segments, the loss is written into the site log and, as a gap, into the history; a peer that holds more gives it back. Of a damaged site log the newest value that is left of each counts, and nothing is thinned until group maintain NAME --trust-site-log. The daemon must be stopped.",
		[]string{"afterimage group recover web --accept-loss --dry-run", "afterimage group recover web --accept-loss --yes"},
		[]cli.Flag{
			&cli.BoolFlag{Name: "accept-loss", Usage: "what is lost here is lost"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say why it does not open and change nothing"},
			&cli.BoolFlag{Name: "yes", Usage: "do not ask"},
		}, w.groupRecover)
}

func (w *world) groupRecover(c *cli.Context) error {
	if !c.Bool("accept-loss") {
		return usage("recover needs --accept-loss: it goes on without what is lost")
	}
	cfg, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	p := w.printer(c)
	q := control.RecoverRequest{Group: c.Args().First(), DryRun: true}
	r, err := site.Recover(cfg, site.Options{}, q)
	if err != nil {
		return err
	}
	if r.Why != "" && !c.Bool("dry-run") {
		p.note("%s: %s", r.Group, r.Why)
		if err := p.confirm(c.Bool("yes"), r.Group, "accept the loss of"); err != nil {
			return err
		}
		q.DryRun = false
		if r, err = site.Recover(cfg, site.Options{}, q); err != nil {
			return err
		}
	}
	return p.data(r, func() string {
		switch {
		case r.Why == "":
			return fmt.Sprintf("%s: opens, up to record %d; nothing to recover\n", r.Group, r.Head)
		case r.DryRun:
			would := "it would be cut where it last verifies"
			if r.SiteLog {
				would = "no record would be cut; what is left of the site log would count"
			}
			return fmt.Sprintf("%s: %s\n%s; nothing is changed\n", r.Group, r.Why, would)
		}
		s := fmt.Sprintf("%s: opens again, up to record %d\n", r.Group, r.Head)
		if r.SiteLog {
			s += "may be of an earlier time: " + older(r.Older) + "\nnothing is thinned until group maintain --trust-site-log\n"
		}
		for _, k := range r.Kept {
			s += "kept: " + k + "\n"
		}
		return s
	})
}

// older names values of a site log.
func older(keys []string) string {
	if len(keys) == 0 {
		return "nothing that is there; some values may be missing"
	}
	var names []string
	for _, k := range keys {
		names = append(names, strings.TrimPrefix(k, "journal/"))
	}
	return strings.Join(names, ", ")
}
