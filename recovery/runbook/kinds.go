package runbook

import (
	"fmt"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// kind reads what stands behind a step's kind:
//
//	start: MACHINE                                  agent: MACHINE
//	stop: MACHINE                                   stop: {machine: MACHINE, how: shutdown|off}
//	ping: HOST                                      tcp: HOST:PORT
//	http: URL                                       http: {url: URL, status: 200, contains: TEXT}
//	program: [FILE, ARG…]                           notify: [FILE, ARG…]
//	script: [FILE, ARG…], beside it check: [FILE, ARG…] or idempotent: true
//	prompt: TEXT
//	network: {machine: MACHINE, interfaces: {ID: NETWORK}}
//	reip: {machine: MACHINE, interface: NAME, address: CIDR, gateway: IP, dns: [IP]}
func (r *reader) kind(s *Step, e entry) {
	_, plain := e.value.(ast.ScalarNode)
	if lit, ok := e.value.(*ast.LiteralNode); ok && lit != nil {
		plain = true
	}
	switch s.Kind {
	case Start, Agent:
		s.Machine, _ = r.scalar(e.value, e.path)
	case Ping, TCP:
		s.Address, _ = r.scalar(e.value, e.path)
	case Prompt:
		s.Text, _ = r.scalar(e.value, e.path)
	case Program, Script, Notify:
		s.Argv = r.argv(e)
	case Stop:
		if plain {
			s.Machine, _ = r.scalar(e.value, e.path)
			return
		}
		r.fields(e, map[string]func(entry){
			"machine": r.into(&s.Machine),
			"how":     func(f entry) { s.How = r.oneOf(f, "shutdown", "off") },
		}, "machine", "how")
	case HTTP:
		if plain {
			s.URL, _ = r.scalar(e.value, e.path)
			return
		}
		r.fields(e, map[string]func(entry){
			"url": r.into(&s.URL), "contains": r.into(&s.Contains),
			"status": func(f entry) { s.Status = r.number(f, 100, 599) },
		}, "url", "status", "contains")
	case Network:
		r.fields(e, map[string]func(entry){
			"machine": r.into(&s.Machine),
			"interfaces": func(f entry) {
				s.Interfaces = map[string]string{}
				for _, x := range r.entries(f.value, f.path, "interfaces: {net0: br0}") {
					s.Interfaces[x.key], _ = r.scalar(x.value, x.path)
				}
			},
		}, "machine", "interfaces")
	case ReIP:
		r.fields(e, map[string]func(entry){
			"machine": r.into(&s.Machine), "interface": r.into(&s.Interface), "address": r.into(&s.Address), "gateway": r.into(&s.Gateway),
			"dns": func(f entry) { s.DNS = r.words(f) },
		}, "machine", "interface", "address", "gateway", "dns")
	}
}

// fields calls of with each entry of a mapping; known is its keys in the order of the
// documentation.
func (r *reader) fields(e entry, of map[string]func(entry), known ...string) {
	for _, f := range r.entries(e.value, e.path, "known keys: "+strings.Join(known, ", ")) {
		if read, ok := of[f.key]; ok {
			read(f)
		} else {
			r.unknown(f, known)
		}
	}
}

func (r *reader) into(s *string) func(entry) {
	return func(e entry) { *s, _ = r.scalar(e.value, e.path) }
}

// argv is a program and its arguments, which no shell sees.
func (r *reader) argv(e entry) []string {
	if _, plain := e.value.(ast.ScalarNode); plain {
		text, _ := r.scalar(e.value, e.path)
		if strings.ContainsAny(text, " \t\n") {
			r.report(CodeValue, placeOf(e.value), "write [FILE, ARGUMENT, …]: no shell takes a line apart", "%s is a line, want a list", e.key)
		}
		return []string{text}
	}
	var out []string
	for i, n := range r.items(e.value, e.path) {
		text, _ := r.scalar(n, fmt.Sprintf("%s[%d]", e.path, i))
		out = append(out, text)
	}
	return out
}
