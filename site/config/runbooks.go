package config

import (
	"fmt"
	"path/filepath"
)

// Runbooks is what runbooks may do at this site.
type Runbooks struct {
	// Programs are those that steps may run, by absolute path, as this site's user.
	Programs []string `yaml:"programs,omitempty"`
}

// RunbookPrograms is the allow-list; nil allows none.
func (c *Config) RunbookPrograms() []string {
	if c.Runbooks == nil {
		return nil
	}
	return c.Runbooks.Programs
}

func (s *shape) runbooks(r *Runbooks) {
	if r == nil {
		return
	}
	names := uniques{}
	for i, p := range r.Programs {
		path := fmt.Sprintf("runbooks.programs[%d]", i)
		names.add(s, path, "program", p)
		if !filepath.IsAbs(p) || filepath.Clean(p) != p {
			s.wrong(path, fmt.Sprintf("%q is not an absolute path", p), "name the program from / on, without . or ..: no shell and no PATH are asked")
		}
	}
}
