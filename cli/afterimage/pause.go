package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
)

func (w *world) pauseVerb() *cli.Command {
	return verb("pause", "leave the machine of a group alone for a while", "NAME",
		"While a disk is tapped its machine refuses migration, external snapshots and resizing. A pause lets all of it go: nothing is captured, no points are made, and status says so loudly. It ends by itself; then what changed meanwhile is read, by bitmap where one can be trusted.",
		[]string{"afterimage group pause web --for 1h --reason \"move to host2\""},
		[]cli.Flag{
			&cli.StringFlag{Name: "for", Required: true, Usage: "`SPAN` after which it ends: 10m, 1h, up to 7d"},
			&cli.StringFlag{Name: "reason", Required: true, Usage: "`TEXT` for whoever asks why points are missing"},
		}, w.groupPause)
}

func (w *world) resumeVerb() *cli.Command {
	return verb("resume", "end a pause of a group early", "NAME", "",
		[]string{"afterimage group resume web"}, nil, w.groupResume)
}

func (w *world) groupPause(c *cli.Context) error {
	var span config.Duration
	if err := span.UnmarshalText([]byte(c.String("for"))); err != nil {
		return usage("--for %s: %v", c.String("for"), err)
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	name := c.Args().First()
	r, err := api.Pause(c.Context, control.PauseRequest{Group: name, Seconds: time.Duration(span).Seconds(), Reason: c.String("reason")})
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(r, func() string {
		return fmt.Sprintf("%s is not protected until %s: %s\nIt resumes by itself; group resume %s ends the pause early.\n", name, p.when(r.Until), r.Reason, name)
	})
}

func (w *world) groupResume(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	name := c.Args().First()
	r, err := api.Resume(c.Context, control.ResumeRequest{Group: name})
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(r, func() string {
		return fmt.Sprintf("%s is tapped again; it was paused since %s: %s\n", name, p.when(r.Since), r.Reason)
	})
}
