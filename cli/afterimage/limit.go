package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

const aboutLimit = "RATE is bytes per second as bwlimit: writes them (512K, 5M, 1G; KiB without a letter), off for none, or schedule for what the configuration says. It holds at once, for what is under way too, and after a restart of the daemon as well, until it is over or changed."

// limitVerb is the verb that limits what is sent to a peer, or of a group.
func (w *world) limitVerb(noun, use string) *cli.Command {
	return verb("limit", use, "NAME RATE", aboutLimit,
		[]string{"afterimage " + noun + " limit " + map[string]string{"peer": "b", "group": "web"}[noun] + " 5M --for 2h"},
		[]cli.Flag{spanFlag("for", "", "`SPAN` after which the configuration rules again")},
		func(c *cli.Context) error { return w.limit(c, noun) })
}

func (w *world) limit(c *cli.Context, noun string) error {
	span, err := spanOf(c, "for")
	if err != nil {
		return err
	}
	q := control.LimitRequest{ForSeconds: span.Seconds()}
	if noun == "peer" {
		q.Peer = c.Args().First()
	} else {
		q.Group = c.Args().First()
	}
	if rate := c.Args().Get(1); rate == "schedule" {
		q.Schedule = true
	} else {
		if q.BytesPerSecond, err = config.Rate(rate); err != nil {
			return fault.Wrap(fault.Usage, "limit what is sent", err)
		}
	}
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	l, err := api.Limit(c.Context, q)
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(l, func() string { return p.limited(c.Args().First(), l) })
}

// limited is one line about a limit.
func (p *printer) limited(name string, l control.Limited) string {
	rate := "no limit"
	if l.BytesPerSecond > 0 {
		rate = size(l.BytesPerSecond) + "/s"
	}
	switch {
	case l.Set && !l.Until.IsZero():
		rate += fmt.Sprintf(", until %s", p.when(l.Until))
	case l.Set:
		rate += ", until it is changed"
	case l.Schedule != "":
		rate += ", by the schedule " + l.Schedule
	}
	return fmt.Sprintf("%s: %s\n", name, rate)
}
