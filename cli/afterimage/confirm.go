package main

import (
	"bufio"
	"strings"

	"github.com/novacron/afterimage/site/fault"
)

// confirm asks for the group's name at a terminal. Without a terminal only --yes
// will do: a script never hangs at a question.
func (p *printer) confirm(yes bool, group, verb string) error {
	if yes {
		return nil
	}
	what := verb + " " + group
	if !p.stdinTTY || p.json {
		return fault.New(fault.Unconfirmed, what, "there is nobody to ask, and --yes is not given")
	}
	fprintf(p.stderr, "Type the group's name to %s: ", verb)
	answer, err := bufio.NewReader(p.stdin).ReadString('\n')
	if err != nil && answer == "" {
		return fault.New(fault.Unconfirmed, what, "no answer")
	}
	answer = strings.TrimSpace(answer)
	_, short, _ := strings.Cut(group, "/")
	if answer != group && answer != short {
		return fault.New(fault.Unconfirmed, what, "%q is not the group's name", answer)
	}
	return nil
}
