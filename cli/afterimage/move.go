package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
)

func (w *world) moveVerb() *cli.Command {
	return verb("move", "bring the disks of a group that was failed over into local images, while its machine runs", "NAME",
		"After a failover a machine runs from the journal alone. This gives each of its disks a raw image in a directory: every write goes to the journal and to the image from the beginning, the rest is copied beside it, and then the image is the disk's. The machine's writes wait for a moment at the end, which is told. A move that fails or is interrupted leaves the disk where it was; repeat it. With --pivot the images become the machine's own afterwards: while its guest stands still, for as long as is told, its QEMU exchanges the disks for the images and is tapped, so that every write is journaled and the daemon may be away. Where that does not come about all stays as it was. A disk may go onto a block device instead: one that is smaller, mounted, part of something else, open in a machine or not blank (zeroes in its first and last MiB) is refused.",
		[]string{"afterimage group move web --to /var/lib/afterimage/images", "afterimage group move web --to /var/lib/afterimage/images --pivot", "afterimage group move web --device root=/dev/vg0/web-root --device data=/dev/vg0/web-data", "afterimage group move web --to /srv/disks -o json"},
		[]cli.Flag{&cli.StringFlag{Name: "to", Usage: "`DIRECTORY` of the images, which is there already"},
			&cli.StringSliceFlag{Name: "device", Usage: "`VOLUME=DEVICE`: the block device that a disk goes onto; may be repeated"},
			&cli.BoolFlag{Name: "pivot", Usage: "then have the machine's QEMU open the images itself, and tap it"}}, w.groupMove)
}

// moveRequest reads where the disks are to go.
func moveRequest(c *cli.Context) (q control.MoveRequest, err error) {
	q = control.MoveRequest{Group: c.Args().First(), Pivot: c.Bool("pivot")}
	if to := c.String("to"); to != "" {
		if q.To, err = filepath.Abs(to); err != nil {
			return q, usage("--to %s: %v", to, err)
		}
	}
	if q.Devices, err = volumePaths(c, "device", "VOLUME=DEVICE"); err != nil {
		return q, err
	}
	if q.To == "" && q.Devices == nil {
		return q, usage("say where the disks go: --to DIRECTORY, or --device VOLUME=DEVICE")
	}
	return q, nil
}

func (w *world) groupMove(c *cli.Context) error {
	q, err := moveRequest(c)
	if err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	m := p.meter()
	done, err := api.MoveDisks(c.Context, q, m.show)
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
		text := t.String()
		for _, v := range done.Volumes {
			if v.Local != nil {
				text += fmt.Sprintf("%s is the machine's own; its guest stood still for %.1f ms\n", v.Volume, 1000*v.Local.Pause)
			}
		}
		if done.Unprotected != "" {
			text += "the machine is not protected yet: " + done.Unprotected + "\n"
		}
		return text
	})
}
