package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) seedVerbs() *cli.Command {
	return noun("seed", "a group's first copy, carried to a peer by other means than the link",
		verb("export", "write what a new peer needs of a group into a file", "NAME",
			"The file holds the newest state of every volume up to now, hashed as a whole. What is sealed stays sealed. Carry it to the peer and import it there: replication goes on from the record that it leads to, with what changed since.",
			[]string{"afterimage group seed export web --to /media/disk/web.seed"},
			[]cli.Flag{
				&cli.StringFlag{Name: "to", Required: true, Usage: "`PATH` of the file"},
				&cli.BoolFlag{Name: "overwrite", Usage: "replace a file that is there"},
			}, w.seedExport),
		verb("import", "begin a replica with a seed", "FILE",
			"The seed says which group it is of; that must be configured here as a replica that holds nothing yet, so import before the peers are paired. A seed that is damaged, cut short or of another group is refused, and the group stays as it was.",
			[]string{"afterimage group seed import /media/disk/web.seed"}, nil, w.seedImport),
	)
}

func (w *world) seedExport(c *cli.Context) error {
	to, err := filepath.Abs(c.String("to"))
	if err != nil {
		return fault.Wrap(fault.FileTrouble, "find "+c.String("to"), err)
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	m := p.meter()
	r, err := api.ExportSeed(c.Context, control.SeedExport{Group: c.Args().First(), To: to, Overwrite: c.Bool("overwrite")}, m.show)
	m.end()
	if err != nil {
		return err
	}
	return p.data(r, func() string {
		return fmt.Sprintf("%s: %s holds %s up to #%d, %s\n", r.Group, r.File, size(r.Bytes), r.Seq, p.when(r.Time))
	})
}

func (w *world) seedImport(c *cli.Context) error {
	from, err := filepath.Abs(c.Args().First())
	if err != nil {
		return fault.Wrap(fault.FileTrouble, "find "+c.Args().First(), err)
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	m := p.meter()
	r, err := api.ImportSeed(c.Context, control.SeedImport{From: from}, m.show)
	m.end()
	if err != nil {
		return err
	}
	return p.data(r, func() string {
		return fmt.Sprintf("%s: begun with the seed that site %s made at %s, %s, up to #%d, %s\n", r.Group, r.Site, p.when(r.Made), size(r.Bytes), r.Seq, p.when(r.Time))
	})
}
