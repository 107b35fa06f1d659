package config

import (
	"fmt"
	"path/filepath"
	"time"
)

// Quiesce is how a machine is made ready for an application-consistent mark.
type Quiesce struct {
	// Agent is the host's socket of the guest agent's channel, of a machine of
	// qemu:; a domain's agent is reached through libvirt.
	Agent string `yaml:"agent,omitempty"`
	// Before runs before the file systems are frozen, After once they are thawed,
	// whatever happened in between: programs and their arguments, without a shell.
	Before  []string `yaml:"before,omitempty"`
	After   []string `yaml:"after,omitempty"`
	Timeout Duration `yaml:"timeout,omitempty"` // of each program; default 30s
	Frozen  Duration `yaml:"frozen,omitempty"`  // longest time from freeze to thaw; default 5s
	Every   Duration `yaml:"every,omitempty"`   // between marks that are set without being asked for; none: never
}

// Defaults of Quiesce.
const (
	DefaultHookTimeout = Duration(30 * time.Second)
	DefaultFrozen      = Duration(5 * time.Second)
)

func (q *Quiesce) complete(dir string) {
	if q.Agent != "" && !filepath.IsAbs(q.Agent) {
		q.Agent = filepath.Join(dir, q.Agent)
	}
	if q.Timeout == 0 {
		q.Timeout = DefaultHookTimeout
	}
	if q.Frozen == 0 {
		q.Frozen = DefaultFrozen
	}
}

func (s *shape) quiesce(path string, g Group) {
	q := g.Quiesce
	for name, argv := range map[string][]string{"before": q.Before, "after": q.After} {
		if len(argv) > 0 && !filepath.IsAbs(argv[0]) {
			s.wrong(path+"."+name, fmt.Sprintf("%q is not an absolute path", argv[0]), "name the program from / on: no shell and no PATH are asked")
		}
	}
	if q.Every != 0 && (time.Duration(q.Every) < time.Second || time.Duration(q.Every) > 7*24*time.Hour) {
		s.wrong(path+".every", fmt.Sprintf("marks every %s are not possible", time.Duration(q.Every)), "between 1s and 7 days")
	}
	if q.Agent != "" && g.QEMU == nil && len(g.Machines) == 0 {
		s.wrong(path+".agent", "only a machine of qemu: has an agent's socket", "remove agent:; a domain's agent is reached through libvirt")
	}
}
