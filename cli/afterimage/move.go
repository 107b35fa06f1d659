package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
)

func (w *world) moveVerb() *cli.Command {
	return verb("move", "bring the disks of a group that was failed over into local images, while its machine runs", "NAME",
		"After a failover a machine runs from the journal alone. This gives each of its disks a raw image in a directory: every write goes to the journal and to the image from the beginning, the rest is copied beside it, and then the image is the disk's. The machine's writes wait for a moment at the end, which is told. A move that fails or is interrupted leaves the disk where it was; repeat it.",
		[]string{"afterimage group move web --to /var/lib/afterimage/images", "afterimage group move web --to /srv/disks -o json"},
		[]cli.Flag{&cli.StringFlag{Name: "to", Required: true, Usage: "`DIRECTORY` of the images, which is there already"}}, w.groupMove)
}

func (w *world) groupMove(c *cli.Context) error {
	to, err := filepath.Abs(c.String("to"))
	if err != nil {
		return usage("--to %s: %v", c.String("to"), err)
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	m := p.meter()
	done, err := api.MoveDisks(c.Context, control.MoveRequest{Group: c.Args().First(), To: to}, m.show)
	m.end()
	if err != nil {
		return err
	}
	return p.data(done, func() string {
		t := p.newTable("VOLUME", "SIZE", "PAUSE", "IMAGE")
		for _, v := range done.Volumes {
			pause := fmt.Sprintf("%.1f ms", 1000*v.Pause)
			if v.Before {
				pause = "lay there"
			}
			t.row(v.Volume, size(v.Bytes), pause, v.Image)
		}
		return t.String()
	})
}
