package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) viewCommand() *cli.Command {
	return noun("view", "a group's image at a point",
		verb("serve", "serve a point as NBD exports until interrupted", "NAME",
			"Reading a view changes nothing. With --scratch it is writable; what is written is forgotten with the view. Works without the daemon, except --detach.",
			[]string{"afterimage view serve web --at before:attack", "afterimage view serve web --at -5m --scratch --listen 127.0.0.1:10809"},
			[]cli.Flag{
				atFlag(),
				&cli.StringFlag{Name: "listen", Usage: "`WHERE`: path of a unix socket, or HOST:PORT on loopback; default a socket below the data directory"},
				&cli.BoolFlag{Name: "scratch", Usage: "writable, on a layer that is thrown away"},
				&cli.BoolFlag{Name: "detach", Usage: "leave it to the daemon and return; view close ends it"},
			}, w.viewServe),
		verb("list", "list the views that the daemon serves", "", "", []string{"afterimage view list"}, nil, w.viewList),
		verb("close", "close a view", "ID", "", []string{"afterimage view close v1"}, nil, w.viewClose),
		w.diffVerb(),
		verb("restore", "write volumes of a point to files", "NAME",
			"Every file is written beside its target, synced, read back and compared, and only then takes its name. Works without the daemon.",
			[]string{"afterimage view restore web --at name:before-patch --to /srv/restored", "afterimage view restore web --at '#1200' --volume root --to root.qcow2 --format qcow2"},
			[]cli.Flag{
				atFlag(),
				&cli.StringFlag{Name: "to", Required: true, Usage: "`PATH` of the file; a directory for several volumes"},
				&cli.StringFlag{Name: "volume", Usage: "`NAME` of the volume; default all of the group"},
				&cli.StringFlag{Name: "format", Value: control.FormatSparse, Usage: "`FORMAT`: raw (every byte allocated), sparse (raw with holes), qcow2 (through qemu-img)"},
				&cli.BoolFlag{Name: "overwrite", Usage: "replace files that are there"},
			}, w.viewRestore),
	)
}

func (w *world) viewServe(c *cli.Context) error {
	if err := site.CheckAt(c.String("at")); err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	listen := c.String("listen")
	if listen != "" && strings.Contains(listen, "/") {
		if listen, err = filepath.Abs(listen); err != nil {
			return err
		}
	}
	q := control.ServeRequest{Group: c.Args().First(), At: c.String("at"), Listen: listen, Scratch: c.Bool("scratch"), Lease: !c.Bool("detach")}
	open := false
	var broken error
	err = api.Serve(c.Context, q, func(v control.View) {
		open = true
		p.resolved(v.Group, v.At, v.Point)
		broken = p.data(v, func() string { return p.viewText(v) })
		if q.Lease {
			p.note("serving until interrupted")
		}
	})
	if open && c.Context.Err() != nil {
		return broken // interrupted is how a view ends
	}
	if err == nil {
		err = broken
	}
	return err
}

func (p *printer) viewText(v control.View) string {
	t := p.newTable("VIEW", "VOLUME", "SIZE", "MODE", "EXPORT")
	mode := "read-only"
	if v.Scratch {
		mode = "scratch"
	}
	for _, e := range v.Exports {
		t.row(v.ID, e.Volume, size(e.Size), mode, e.URI)
	}
	return t.String()
}

func (w *world) viewList(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	vs, err := api.Views(c.Context)
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(map[string]any{"views": vs}, func() string {
		if len(vs) == 0 {
			return "no views\n"
		}
		t := p.newTable("VIEW", "GROUP", "POINT", "TIME", "SCRATCH", "LISTEN", "SINCE")
		for _, v := range vs {
			t.row(v.ID, v.Group, seqName(v.Point), p.when(v.Point.Time), fmt.Sprint(v.Scratch), v.Listen, p.when(v.Since))
		}
		return t.String()
	})
}

func (w *world) viewClose(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	id := c.Args().First()
	if err := api.CloseView(c.Context, id); err != nil {
		return err
	}
	return w.printer(c).data(map[string]any{"closed": id}, func() string { return "closed " + id + "\n" })
}

func (w *world) viewRestore(c *cli.Context) error {
	if err := site.CheckAt(c.String("at")); err != nil {
		return err
	}
	switch f := c.String("format"); f {
	case control.FormatRaw, control.FormatSparse, control.FormatQCOW2:
	default:
		return usage("format %q is none of raw, sparse, qcow2", f)
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	to, err := filepath.Abs(c.String("to"))
	if err != nil {
		return fault.Wrap(fault.FileTrouble, "find "+c.String("to"), err)
	}
	if strings.HasSuffix(c.String("to"), "/") {
		to += "/"
	}
	p := w.printer(c)
	m := p.meter()
	q := control.RestoreRequest{Group: c.Args().First(), At: c.String("at"), Volume: c.String("volume"), To: to, Format: c.String("format"), Overwrite: c.Bool("overwrite")}
	r, err := api.Restore(c.Context, q, m.show)
	m.end()
	if err != nil {
		return err
	}
	p.resolved(r.Group, r.At, r.Point)
	return p.data(r, func() string {
		t := p.newTable("VOLUME", "FILE", "FORMAT", "SIZE", "DATA", "VERIFIED", "SHA256")
		for _, f := range r.Files {
			data := size(f.Data)
			if f.Format == "qcow2" { // qemu-img writes it, and does not tell
				data = "-"
			}
			t.row(f.Volume, f.Path, f.Format, size(f.Bytes), data, fmt.Sprint(f.Verified), f.SHA256)
		}
		return t.String()
	})
}
