package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/config"
)

func (w *world) configCommand() *cli.Command {
	return noun("config", "judge and show the configuration",
		verb("check", "find every fault of the configuration, with line and column", "",
			"Nothing outside the file is looked at: a file can be checked on another machine.",
			[]string{"afterimage config check --config /etc/afterimage/afterimage.yml"}, nil, w.configCheck),
		verb("show", "print the configuration", "",
			"Secrets in machine arguments are masked.",
			[]string{"afterimage config show --resolved"},
			[]cli.Flag{&cli.BoolFlag{Name: "resolved", Usage: "with defaults and absolute paths spelt out"}}, w.configShow),
	)
}

func (w *world) configCheck(c *cli.Context) error {
	path := c.String("config")
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	v := map[string]any{"ok": true, "file": path, "site": cfg.Site, "groups": len(cfg.Groups), "peers": len(cfg.Peers)}
	return w.printer(c).data(v, func() string {
		return fmt.Sprintf("%s: ok: site %s, %s, %s\n", path, cfg.Site, plural(uint64(len(cfg.Groups)), "group"), plural(uint64(len(cfg.Peers)), "peer"))
	})
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
