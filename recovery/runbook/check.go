package runbook

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Facts are what a runbook is checked against: what a site is configured with. None
// of it needs the other site.
type Facts struct {
	Groups   []string // as they may be named
	Programs []string // that runbooks may run, absolute paths
}

// word is what names of a runbook are made of.
var word = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)

// blank is a variable in a string.
var blank = regexp.MustCompile(`\{[A-Za-z][A-Za-z0-9_-]*\}`)

// builtin are variables that every plan has.
var builtin = []string{"mode", "runbook"}

// checker judges a runbook's meaning.
type checker struct {
	*reader
	book  *Runbook
	facts Facts
}

// Check judges the meaning of the file against what the site has. It is pure.
func (b *Runbook) Check(f Facts) error {
	c := checker{&reader{file: b.file, text: b.text, places: b.places}, b, f}
	if b.Name == "" {
		c.absent("runbook", "a short name, such as: runbook: shop")
	} else if !word.MatchString(b.Name) {
		c.wrong("runbook", "letters, digits, dots, dashes and underscores, at most 64", "%q is no name", b.Name)
	}
	for _, m := range b.Machines {
		c.machine(m)
	}
	if len(b.Boot) == 0 {
		c.absent("boot", "boot: is the list of boot groups, each with its steps")
	}
	names := map[string]int{}
	for i, g := range b.Boot {
		path := fmt.Sprintf("boot[%d]", i)
		switch first, twice := names[g.Name]; {
		case g.Name == "":
			c.absent(path+".name", "every boot group has a name")
		case !word.MatchString(g.Name):
			c.wrong(path+".name", "letters, digits, dots, dashes and underscores, at most 64", "%q is no name", g.Name)
		case twice:
			c.report(CodeDuplicate, c.at(path+".name"), fmt.Sprintf("the first one stands in line %d", c.at(fmt.Sprintf("boot[%d].name", first)).Line), "two boot groups are named %q", g.Name)
		default:
			names[g.Name] = i
		}
		if len(g.Steps) == 0 {
			c.absent(path+".steps", "a boot group has at least one step, such as: - start: db")
		}
		for k, s := range g.Steps {
			c.step(fmt.Sprintf("%s.steps[%d]", path, k), s)
		}
	}
	c.order(names)
	c.starts()
	return c.problems.orNil()
}

// at is where path stands, or the nearest thing around it that the file has.
func (c checker) at(path string) Place {
	for {
		if p, ok := c.places[path]; ok {
			return p
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return Place{1, 1}
		}
		path = path[:i]
	}
}

func (c checker) wrong(path, hint, what string, args ...any) {
	c.report(CodeValue, c.at(path), hint, what, args...)
}

func (c checker) absent(path, hint string) {
	c.report(CodeAbsent, c.at(path), hint, "%s is missing", last(path))
}

func (c checker) machine(m Machine) {
	path := "machines." + m.Name
	if !word.MatchString(m.Name) {
		c.wrong(path, "letters, digits, dots, dashes and underscores, at most 64", "%q is no name", m.Name)
	}
	if !slices.Contains(c.facts.Groups, m.Group) {
		hint := "this site is configured with no group"
		if len(c.facts.Groups) > 0 {
			hint = "groups of this site: " + strings.Join(c.facts.Groups, ", ")
		}
		c.report(CodeGroup, c.at(path), hint, "machine %q is of group %q, which this site does not have", m.Name, m.Group)
	}
	for _, other := range c.book.Machines {
		if other.Name == m.Name {
			return
		}
		if other.Group == m.Group {
			c.report(CodeDuplicate, c.at(path), "a group is brought up once, with its machine", "machines %q and %q are of one group, %q", other.Name, m.Name, m.Group)
		}
	}
}

// order judges which boot group comes after which.
func (c checker) order(names map[string]int) {
	for i, g := range c.book.Boot {
		for k, after := range g.After {
			if _, ok := names[after]; !ok {
				var known []string
				for _, o := range c.book.Boot {
					known = append(known, o.Name)
				}
				at := c.at(fmt.Sprintf("boot[%d].after[%d]", i, k))
				c.report(CodeBoot, at, "boot groups: "+strings.Join(known, ", "), "boot group %q is not there to come after", after)
			}
		}
	}
	if ring := c.book.ring(); ring != nil {
		i := names[ring[0]]
		c.report(CodeCycle, c.at(fmt.Sprintf("boot[%d].after", i)), "take one of these after: out", "boot groups wait for each other: %s", strings.Join(append(ring, ring[0]), " after "))
	}
}

// ring is a circle of boot groups that wait for each other, nil if there is none.
func (b *Runbook) ring() []string {
	state := map[string]int{} // 1: on the path, 2: done
	var path []string
	var visit func(i int) []string
	visit = func(i int) []string {
		name := b.Boot[i].Name
		state[name] = 1
		path = append(path, name)
		for _, k := range b.before(i) {
			switch next := b.Boot[k].Name; state[next] {
			case 1:
				return slices.Clone(path[slices.Index(path, next):])
			case 0:
				if r := visit(k); r != nil {
					return r
				}
			}
		}
		state[name] = 2
		path = path[:len(path)-1]
		return nil
	}
	for i, g := range b.Boot {
		if state[g.Name] == 0 {
			if r := visit(i); r != nil {
				return r
			}
		}
	}
	return nil
}

// before are the boot groups that the i-th comes after.
func (b *Runbook) before(i int) []int {
	g := b.Boot[i]
	if g.After == nil {
		if i == 0 {
			return nil
		}
		return []int{i - 1}
	}
	var out []int
	for _, name := range g.After {
		if k := slices.IndexFunc(b.Boot, func(o Boot) bool { return o.Name == name }); k >= 0 {
			out = append(out, k)
		}
	}
	return out
}

// starts judges that no machine is started twice in one mode, for the second would
// be no step at all.
func (c checker) starts() {
	for _, mode := range Modes() {
		seen := map[string]Place{}
		for i, g := range c.book.Boot {
			for k, s := range g.Steps {
				if s.Kind != Start || !s.in(mode) {
					continue
				}
				at := c.at(fmt.Sprintf("boot[%d].steps[%d]", i, k))
				if first, twice := seen[s.Machine]; twice {
					if !slices.ContainsFunc(c.problems, func(p Problem) bool { return p.Code == CodeDuplicate && p.Place == at }) {
						c.report(CodeDuplicate, at, fmt.Sprintf("line %d starts it already", first.Line), "machine %q is started twice", s.Machine)
					}
					continue
				}
				seen[s.Machine] = at
			}
		}
	}
}

func (s Step) in(m Mode) bool { return s.In == nil || slices.Contains(s.In, m) }

func (c checker) step(path string, s Step) {
	own := path + "." + string(s.Kind)
	if s.Machine != "" && !slices.ContainsFunc(c.book.Machines, func(m Machine) bool { return m.Name == s.Machine }) {
		var known []string
		for _, m := range c.book.Machines {
			known = append(known, m.Name)
		}
		at := c.at(path + ".machine")
		switch _, beside := c.places[path+".machine"]; {
		case beside:
		case s.Kind == Start || s.Kind == Stop || s.Kind == Agent:
			at = c.at(own)
		default:
			at = c.at(own + ".machine")
		}
		hint := "machines: names none"
		if len(known) > 0 {
			hint = "machines: names " + strings.Join(known, ", ")
		}
		c.report(CodeMachine, at, hint, "machine %q is not one of this runbook", s.Machine)
	}
	needs := slices.Contains([]Kind{Start, Stop, Agent, Network, ReIP}, s.Kind)
	if needs && s.Machine == "" {
		c.absent(own+".machine", string(s.Kind)+": names one of machines:")
	}
	if s.Kind.runs() {
		c.program(own, s.Argv)
	}
	if s.Check != nil {
		c.program(path+".check", s.Check)
	}
	switch s.Kind {
	case Ping:
		c.need(own, s.Address, "the host to ask, by name or address")
	case TCP:
		if _, _, err := net.SplitHostPort(c.filled(s.Address)); err != nil {
			c.wrong(own, "write it as HOST:PORT", "%q is no address", s.Address)
		}
	case HTTP:
		if u, err := url.Parse(c.filled(s.URL)); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			c.wrong(own, "such as http://10.0.0.5/health", "%q is no address of the web", s.URL)
		}
	case Prompt:
		c.need(own, s.Text, "the question, such as: prompt: Is the load balancer switched?")
	case Network:
		if len(s.Interfaces) == 0 {
			c.absent(own+".interfaces", "interfaces: {net0: br0}")
		}
	case ReIP:
		c.need(own+".interface", s.Interface, "the interface's name in the guest, such as eth0")
		if _, err := netip.ParsePrefix(c.filled(s.Address)); err != nil {
			c.wrong(own+".address", "such as 10.0.0.5/24", "%q is no address with a prefix length", s.Address)
		}
		for _, ip := range append([]string{s.Gateway}, s.DNS...) {
			if _, err := netip.ParseAddr(c.filled(ip)); ip != "" && err != nil {
				c.wrong(own, "such as 10.0.0.1", "%q is no address", ip)
			}
		}
	}
	for _, text := range s.strings() {
		c.variables(own, text)
	}
}

func (c checker) need(path, value, hint string) {
	if value == "" {
		c.absent(path, hint)
	}
}

// program judges that argv begins with a program of the allow-list.
func (c checker) program(path string, argv []string) {
	if len(argv) == 0 || argv[0] == "" {
		c.absent(path, "[FILE, ARGUMENT, …]")
		return
	}
	if slices.Contains(c.facts.Programs, argv[0]) && filepath.IsAbs(argv[0]) {
		return
	}
	hint := "runbooks: {programs: […]} of the site's configuration allows none"
	if len(c.facts.Programs) > 0 {
		hint = "runbooks: {programs: […]} of the site's configuration allows " + strings.Join(c.facts.Programs, ", ")
	}
	c.report(CodeProgram, c.at(path), hint, "program %q is not one that runbooks may run", argv[0])
}

// variables judges that what stands in braces is a variable.
func (c checker) variables(path, text string) {
	for _, hole := range blank.FindAllString(text, -1) {
		name := hole[1 : len(hole)-1]
		if slices.Contains(builtin, name) || slices.ContainsFunc(c.book.Vars, func(v Var) bool { return v.Name == name }) {
			continue
		}
		known := slices.Clone(builtin)
		for _, v := range c.book.Vars {
			known = append(known, v.Name)
		}
		c.report(CodeVariable, c.at(path), "variables: "+strings.Join(known, ", "), "{%s} stands for nothing", name)
	}
}

// filled is text with each variable's live value, to judge its form.
func (c checker) filled(text string) string { return c.book.fill(text, Unplanned) }

// fill puts the variables' values into text.
func (b *Runbook) fill(text string, m Mode) string {
	return blank.ReplaceAllStringFunc(text, func(hole string) string {
		name := hole[1 : len(hole)-1]
		switch name {
		case "mode":
			return string(m)
		case "runbook":
			return b.Name
		}
		for _, v := range b.Vars {
			if v.Name == name && m == Test {
				return v.Test
			}
			if v.Name == name {
				return v.Live
			}
		}
		return hole
	})
}

// strings are those of s in which variables stand. The program itself is none: the
// allow-list names it as it is.
func (s Step) strings() []string {
	out := []string{s.Address, s.URL, s.Contains, s.Text, s.Interface, s.Gateway}
	for _, argv := range [][]string{s.Argv, s.Check} {
		if len(argv) > 1 {
			out = append(out, argv[1:]...)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.Interfaces)) {
		out = append(out, s.Interfaces[k])
	}
	return append(out, s.DNS...)
}
