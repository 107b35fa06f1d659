package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// pairVerbs let two sites know each other's keys.
func (w *world) pairVerbs() []*cli.Command {
	return []*cli.Command{
		verb("invite", "print a token with which a peer pairs itself", "NAME",
			"The token holds this site's addresses, the hash of its key and a secret that is good once. Who has it becomes the peer: carry it over a channel that you trust. The configuration names the peer and what it gets; a pin: is not needed.",
			[]string{"afterimage peer invite b", "afterimage peer invite b --for 10m --address site-a.example:7700"},
			[]cli.Flag{
				spanFlag("for", "1h", "`SPAN` after which the token is worth nothing"),
				&cli.StringSliceFlag{Name: "address", Usage: "`HOST:PORT` where this site can be called; may be repeated; default: where it listens"},
			}, w.peerInvite),
		verb("join", "pair this site with the one that made a token", "[TOKEN]",
			"Pins that site's key here, and this site's there. Left out, the token is read from the standard input, where other users' ps does not show it.",
			[]string{"afterimage peer join", "afterimage peer join aijoin1-AWEBYg"}, nil, w.peerJoin),
		verb("rotate", "change this site's key", "",
			"A next key is drawn; the peers are told of it over their sessions and accept both from then on. When all have said so, this site shows the next one alone, and a peer that has seen it drops the other. Peers that are away are waited for, over restarts too; again, it says for whom. With --now those must be paired anew.",
			[]string{"afterimage peer rotate", "afterimage peer rotate --now --yes"},
			[]cli.Flag{&cli.BoolFlag{Name: "now", Usage: "do not wait for peers that are away"}, &cli.BoolFlag{Name: "yes", Usage: "do not ask"}}, w.peerRotate),
		verb("remove", "accept a peer's keys no more", "NAME",
			"Its sessions end at once, and it is not let in again, whatever pin: the configuration has, until peer invite or peer join pairs it anew. What it holds stays there.",
			[]string{"afterimage peer remove b --yes"},
			[]cli.Flag{&cli.BoolFlag{Name: "yes", Usage: "do not ask"}}, w.peerRemove),
	}
}

func (w *world) peerInvite(c *cli.Context) error {
	span, err := spanOf(c, "for")
	if err != nil {
		return err
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	i, err := api.Invite(c.Context, control.InviteRequest{Peer: c.Args().First(), Addresses: c.StringSlice("address"), ForSeconds: span.Seconds()})
	if err != nil {
		return err
	}
	p := w.printer(c)
	p.note("good once, until %s, at %s; on %s: afterimage peer join", p.when(i.Expires), strings.Join(i.Addresses, ", "), i.Peer)
	return p.data(i, func() string { return i.Token + "\n" })
}

const maxTokenText = 16 << 10

func (w *world) peerJoin(c *cli.Context) error {
	token := c.Args().First()
	if token == "" {
		line, err := bufio.NewReader(io.LimitReader(w.stdin, maxTokenText)).ReadString('\n')
		if err != nil && line == "" {
			return fault.New(fault.Usage, "join by token", "no token on the standard input")
		}
		token = strings.TrimSpace(line)
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	j, err := api.Join(c.Context, control.JoinRequest{Token: token})
	if err != nil {
		return err
	}
	return w.printer(c).data(j, func() string { return fmt.Sprintf("paired with %s, pin %s, at %s\n", j.Peer, j.Pin, orDash(j.Address)) })
}

func (w *world) peerRotate(c *cli.Context) error {
	cfg, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	if c.Bool("now") {
		if err := p.confirmNamed(c.Bool("yes"), "site", cfg.Site, "lock out the peers that do not know the next key"); err != nil {
			return err
		}
	}
	r, err := api.Rotate(c.Context, control.RotateRequest{Now: c.Bool("now")})
	if err != nil {
		return err
	}
	return p.data(r, func() string {
		if r.Next == "" {
			return fmt.Sprintf("this site's pin is %s\n", r.Pin)
		}
		return fmt.Sprintf("this site's pin is %s, and will be %s once it is known at: %s\n", r.Pin, r.Next, strings.Join(r.Waiting, ", "))
	})
}

func (w *world) peerRemove(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	p := w.printer(c)
	if err := p.confirmNamed(c.Bool("yes"), "peer", c.Args().First(), "remove the peer"); err != nil {
		return err
	}
	j, err := api.RemovePeer(c.Context, control.RemovePeerRequest{Peer: c.Args().First()})
	if err != nil {
		return err
	}
	return p.data(j, func() string { return fmt.Sprintf("%s is not accepted any more\n", j.Peer) })
}
