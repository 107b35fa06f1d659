package main

import (
	"time"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site/config"
)

// spanFlag is a flag for a length of time as configurations write it, days included.
func spanFlag(name, preset, use string) cli.Flag {
	return &cli.StringFlag{Name: name, Value: preset, Usage: use}
}

// spanOf is what such a flag says, above nothing; zero where it was left out and has
// no preset.
func spanOf(c *cli.Context, name string) (time.Duration, error) {
	text := c.String(name)
	if text == "" && !c.IsSet(name) {
		return 0, nil
	}
	var span config.Duration
	if err := span.UnmarshalText([]byte(text)); err != nil || span <= 0 {
		return 0, usage("--%s %q is no span such as 30s, 1h or 7d", name, text)
	}
	return time.Duration(span), nil
}
