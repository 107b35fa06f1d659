package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
)

func (w *world) keyVerbs() *cli.Command {
	return noun("key", "the keys that a group's history is sealed with",
		verb("show", "show with which keys a history is sealed", "NAME",
			"Keys are shown by name; no command shows a key.",
			[]string{"afterimage group key show web"}, nil, w.keyShow),
		verb("rotate", "wrap a group's data keys with its newest key", "NAME",
			"Add the new key to keys: of the configuration, name it as key: of the group, restart the daemon, and run this: first at the primary, then at every site that reads. The older key is needed until it is done everywhere. What is stored is not written again.",
			[]string{"afterimage group key rotate web"},
			[]cli.Flag{&cli.BoolFlag{Name: "dry-run", Usage: "say how things stand, and do nothing"}}, w.keyRotate),
		verb("shred", "make a sealed history unreadable for ever", "NAME",
			"Destroys the keys that the group's history is sealed with: key files are overwritten and removed, the wrapped data keys of this site are erased. Without the key every copy at every site is noise. Backups of a key undo it: destroy them too, and run this at every site that has the key.",
			[]string{"afterimage group key shred web --dry-run", "afterimage group key shred web --yes"},
			[]cli.Flag{&cli.BoolFlag{Name: "dry-run", Usage: "say what would be lost, and do nothing"}, &cli.BoolFlag{Name: "yes", Usage: "do not ask"}}, w.keyShred),
	)
}

func (w *world) keyShow(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	k, err := api.Key(c.Context, control.KeyRequest{Group: c.Args().First()})
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(k, func() string { return p.keyText(k) })
}

func (w *world) keyRotate(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	k, err := api.RotateKey(c.Context, control.KeyRequest{Group: c.Args().First(), DryRun: c.Bool("dry-run")})
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(k, func() string {
		if k.DryRun {
			return p.keyText(k)
		}
		return fmt.Sprintf("%s: %s wrapped with %s, %d of them now\n", k.Group, plural(uint64(k.DataKeys), "data key"), k.Key, k.Rewrapped)
	})
}

func (w *world) keyShred(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	q := control.KeyRequest{Group: c.Args().First(), DryRun: true}
	plan, err := api.ShredKey(c.Context, q)
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return p.data(plan, func() string { return p.shredText(plan) })
	}
	if !c.Bool("yes") && !p.json {
		fprintf(p.stderr, "%s", p.shredText(plan))
	}
	if err := p.confirm(c.Bool("yes"), plan.Group, "shred the history of"); err != nil {
		return err
	}
	q.DryRun = false
	done, err := api.ShredKey(c.Context, q)
	if err != nil {
		return err
	}
	return p.data(done, func() string { return p.shredText(done) })
}

func (p *printer) keyText(k control.KeyState) string {
	var b strings.Builder
	line := func(name, text string) { fmt.Fprintf(&b, "  %-11s %s\n", name, text) }
	fmt.Fprintf(&b, "%s\n", k.Group)
	line("key", orDash(k.Key))
	line("wrapped by", orDash(strings.Join(k.Keys, ", ")))
	text := fmt.Sprint(k.DataKeys)
	if k.Unreadable > 0 {
		text += p.colored(yellow, fmt.Sprintf(", %d that no key here opens", k.Unreadable))
	}
	line("data keys", text)
	return b.String()
}

// shredText is what a shredding did, or would do.
func (p *printer) shredText(k control.KeyState) string {
	var b strings.Builder
	if k.DryRun {
		fmt.Fprintf(&b, "%s: %s of points and %s of history would be unreadable for ever\n", k.Group, seconds(k.Seconds), size(k.Bytes))
		fmt.Fprintf(&b, "  keys        %s\n", strings.Join(k.Keys, ", "))
	} else {
		fmt.Fprintf(&b, "%s: %s of points and %s of history do not read any more\n", k.Group, seconds(k.Seconds), size(k.Bytes))
		fmt.Fprintf(&b, "  destroyed   %s\n", orDash(strings.Join(k.Destroyed, ", ")))
	}
	for _, r := range k.Remaining {
		fmt.Fprintf(&b, "  %s\n", p.colored(yellow, "yours       destroy "+r+": this site cannot"))
	}
	return b.String()
}
