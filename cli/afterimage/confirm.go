package main

import (
	"bufio"
	"strings"

	"github.com/novacron/afterimage/site/fault"
)

// confirm asks for a group's name at a terminal.
func (p *printer) confirm(yes bool, group, verb string) error {
	return p.confirmNamed(yes, "group", group, verb)
}

// confirmNamed asks for the name of a noun at a terminal. Without a terminal only --yes
// will do: a script never hangs at a question.
func (p *printer) confirmNamed(yes bool, noun, name, verb string) error {
	if yes {
		return nil
	}
	what := verb + " " + name
	refuse := func(why string, args ...any) error {
		return fault.New(fault.Unconfirmed, what, why, args...).Advise("Repeat with --yes, or type the %s's name (%s) at a terminal. Where the command has --dry-run, look at that first.", noun, name)
	}
	if !p.stdinTTY || p.json {
		return refuse("there is nobody to ask, and --yes is not given")
	}
	fprintf(p.stderr, "Type the %s's name to %s: ", noun, verb)
	answer, err := bufio.NewReader(p.stdin).ReadString('\n')
	if err != nil && answer == "" {
		return refuse("no answer")
	}
	answer = strings.TrimSpace(answer)
	_, short, ok := strings.Cut(name, "/")
	if answer != name && !(ok && answer == short) {
		return refuse("%q is not the %s's name", answer, noun)
	}
	return nil
}
