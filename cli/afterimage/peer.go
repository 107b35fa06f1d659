package main

import (
	"cmp"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/control"
)

func (w *world) peerCommand() *cli.Command {
	verbs := []*cli.Command{
		verb("list", "list the peers", "", "", []string{"afterimage peer list"}, nil, w.peerList),
		verb("pin", "print this site's pin, which its peers put into their configuration", "",
			"The key is drawn on first use and kept in the file that key: names, readable by its owner alone.",
			[]string{"afterimage peer pin --config site-a.yml"}, nil, w.peerPin),
		w.limitVerb("peer", "limit what is sent to a peer"),
	}
	return noun("peer", "the other sites", append(verbs, w.pairVerbs()...)...)
}

func (w *world) peerList(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	s, err := api.Status(c.Context)
	if err != nil {
		return err
	}
	p := w.printer(c)
	if s.Daemon != control.Running {
		p.note("daemon %s", s.Daemon)
	}
	return p.data(map[string]any{"daemon": s.Daemon, "pin": s.Pin, "peers": s.Peers}, func() string { return p.peerTable(s.Peers) })
}

func (p *printer) peerTable(peers []control.Peer) string {
	if len(peers) == 0 {
		return "no peers\n"
	}
	t := p.newTable("PEER", "ADDRESS", "STATE", "BY", "RPO", "LIMIT", "GROUPS", "ERROR")
	t.tint = func(column int, cell string) string {
		if column != 2 {
			return cell
		}
		return p.colored(stateColor(cell), cell)
	}
	for _, e := range peers {
		limit, r := "-", "-"
		if e.Limit > 0 {
			limit = size(e.Limit) + "/s"
		}
		if e.RPOSeconds != nil {
			r = seconds(*e.RPOSeconds)
		} else if e.Groups > 0 {
			r = "unknown"
		}
		t.row(e.Name, orDash(e.Address), e.State, carriedBy(e), r, limit, fmt.Sprint(e.Groups), orDash(cmp.Or(e.Error, e.TransportWhy)))
	}
	return t.String()
}

// carriedBy is the transport of a peer's session and its connections.
func carriedBy(e control.Peer) string {
	if e.Transport == "" {
		return "-"
	}
	return fmt.Sprintf("%s x%d", e.Transport, e.Connections)
}

func (w *world) peerPin(c *cli.Context) error {
	cfg, _, err := w.site(c)
	if err != nil {
		return err
	}
	pin, err := site.Pin(cfg)
	if err != nil {
		return err
	}
	return w.printer(c).data(map[string]any{"site": cfg.Site, "pin": pin}, func() string { return pin + "\n" })
}
