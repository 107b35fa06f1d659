package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) homeVerb() *cli.Command {
	return verb("home", "show which disks a domain comes home to, or say that others are its own now", "NAME",
		"When a group is handed back to the site of its domain, the domain's own disks are overwritten with what the group holds by then. That is refused where the domain's definition names another disk than it was last seen to run from, for it may be somebody else's. This shows both. With --disk, for each of them, you say that the disk which the definition names is the domain's: all that it holds is lost when the group comes home. Nothing else is overridden, and nothing is written yet. --dry-run says what it would mean. A terminal asks for the group's name, a script needs --yes. Run it at the site of the domain.",
		[]string{"afterimage group home web", "afterimage group home web --disk root=/srv/new/web-root.qcow2 --yes", "afterimage group home web -o json"},
		[]cli.Flag{
			&cli.StringSliceFlag{Name: "disk", Usage: "`VOLUME=PATH`: what the domain's definition names is its disk now, and may be overwritten; may be repeated"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be remembered, and change nothing"},
			&cli.BoolFlag{Name: "yes", Usage: "go on without asking"},
		}, w.groupHome)
}

// volumePaths reads VOLUME=PATH, once for a volume; paths become absolute.
func volumePaths(c *cli.Context, flag, form string) (out map[string]string, err error) {
	for _, text := range c.StringSlice(flag) {
		volume, path, ok := strings.Cut(text, "=")
		if _, twice := out[volume]; !ok || volume == "" || path == "" || twice {
			return nil, usage("--%s %s: want %s, once for a volume", flag, text, form)
		}
		if path, err = filepath.Abs(path); err != nil {
			return nil, usage("--%s %s: %v", flag, text, err)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[volume] = path
	}
	return out, nil
}

func (w *world) groupHome(c *cli.Context) error {
	disks, err := volumePaths(c, "disk", "VOLUME=PATH")
	if err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	q := control.HomeRequest{Group: c.Args().First(), Disks: disks, DryRun: true, Operator: operator()}
	h, err := api.HomeDisks(c.Context, q)
	if err != nil {
		return err
	}
	if len(disks) > 0 && !c.Bool("dry-run") {
		p.note("%s", p.homeScreen(h, disks))
		if err := p.confirm(c.Bool("yes"), h.Group, "let its disks be overwritten when it comes home"); err != nil {
			return err
		}
		q.DryRun = false
		if h, err = api.HomeDisks(c.Context, q); err != nil {
			return err
		}
	}
	return p.data(h, func() string { return p.homeScreen(h, disks) })
}

func (p *printer) homeScreen(h control.Home, disks map[string]string) string {
	t := p.newTable("VOLUME", "RAN FROM", "DEFINITION NAMES", "WAY HOME")
	refused := false
	for _, d := range h.Disks {
		way := "open"
		switch _, told := disks[d.Volume]; {
		case d.Said:
			way = "open: you said so"
		case told && d.Ran == d.Named && d.RanFormat == d.NamedFormat:
			way = "open as it is"
		case told:
			way = "would be open"
		case d.Refused:
			way, refused = "refused", true
		}
		t.row(d.Volume, placed(d.Ran, d.RanFormat), placed(d.Named, d.NamedFormat), way)
	}
	text := fmt.Sprintf("%s comes home to the disks of domain %s\n\n%s", h.Group, h.Domain, t.String())
	if refused {
		text += fmt.Sprintf("\nwhat was not seen as the domain's is not overwritten (%s): explain %s tells what to do\n", fault.HomeElsewhere, fault.HomeElsewhere)
	}
	return text
}

// placed is a file with what is in it.
func placed(path, format string) string {
	if path == "" {
		return "not known"
	}
	return path + " (" + format + ")"
}
