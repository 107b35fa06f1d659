package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/novacron/afterimage/site/fault"
)

// TenantKey is a key of 32 bytes that wraps the data keys of a tenant's sealed
// groups, and where it is taken from: exactly one of
//
//	file:       a file that nobody else may read, with 32 bytes, raw or as 64 hex digits
//	command:    a program and its arguments, run without a shell, that prints the same
//	credential: a systemd credential (LoadCredential=) of that name
//
// A key that once wrapped something stays in the list until it is rotated out.
type TenantKey struct {
	Name       string   `yaml:"name"`
	Tenant     string   `yaml:"tenant,omitempty"`
	File       string   `yaml:"file,omitempty"`
	Command    []string `yaml:"command,omitempty"`
	Credential string   `yaml:"credential,omitempty"`
	Timeout    Duration `yaml:"timeout,omitempty"` // of the command
}

// Source is where the key is taken from, for people.
func (k TenantKey) Source() string {
	switch {
	case k.File != "":
		return "file " + k.File
	case k.Credential != "":
		return "credential " + k.Credential
	case len(k.Command) > 0:
		return "command " + k.Command[0]
	}
	return "nowhere"
}

// Compress says when payloads of a group are made smaller.
type Compress string

// Modes of Compress.
const (
	CompressAuto   Compress = "auto"   // while a core is free and it gains something
	CompressOff    Compress = "off"    // never; lengths in a sealed group then tell nothing of its content
	CompressAlways Compress = "always" // whatever it costs
)

// UnmarshalText accepts the modes.
func (c *Compress) UnmarshalText(text []byte) error {
	switch v := Compress(text); v {
	case CompressAuto, CompressOff, CompressAlways:
		*c = v
		return nil
	}
	return fmt.Errorf("compress %q is not understood: want auto, off or always", text)
}

// DefaultKeyTimeout is how long a command may take to print a key.
const DefaultKeyTimeout = Duration(10 * time.Second)

// complete fills in what a key leaves out.
func (k *TenantKey) complete(dir string) {
	if k.Tenant == "" {
		k.Tenant = DefaultTenant
	}
	if k.File != "" && !filepath.IsAbs(k.File) {
		k.File = filepath.Join(dir, k.File)
	}
	if len(k.Command) > 0 && k.Timeout == 0 {
		k.Timeout = DefaultKeyTimeout
	}
}

// KeysOf lists the keys of a tenant.
func (c *Config) KeysOf(tenant string) []TenantKey {
	var out []TenantKey
	for _, k := range c.Keys {
		if k.Tenant == tenant {
			out = append(out, k)
		}
	}
	return out
}

// keys judges the list of keys.
func (s *shape) keys(c *Config) {
	const want = "one of file: PATH, command: [PROGRAM, ARGUMENT, …], credential: NAME"
	names := uniques{}
	for i, k := range c.Keys {
		path := fmt.Sprintf("keys[%d]", i)
		s.name(path+".name", k.Name, "the name that groups and the history call it by, such as acme-1")
		s.name(path+".tenant", k.Tenant, "")
		if k.Name != "" {
			names.add(s, path+".name", "key", k.Tenant+"/"+k.Name)
		}
		n := 0
		for _, given := range []bool{k.File != "", len(k.Command) > 0, k.Credential != ""} {
			if given {
				n++
			}
		}
		switch {
		case n == 0:
			s.absent(path+".file", want)
		case n > 1:
			s.wrong(path, fmt.Sprintf("key %q is taken from more than one place", k.Name), want)
		}
		if len(k.Command) > 0 && !filepath.IsAbs(k.Command[0]) {
			s.wrong(path+".command", fmt.Sprintf("%q is not an absolute path", k.Command[0]), "name the program from / on: no shell and no PATH are asked")
		}
		if k.Credential != "" {
			s.name(path+".credential", k.Credential, "")
		}
		if k.Timeout != 0 && len(k.Command) == 0 {
			s.wrong(path+".timeout", "only a command takes time", "remove timeout:")
		}
	}
}

// keyOf judges which key a group is sealed with.
func (s *shape) keyOf(path string, c *Config, g Group) {
	if g.Key == "" {
		return
	}
	var known []string
	for _, k := range c.KeysOf(g.Tenant) {
		known = append(known, k.Name)
	}
	if slices.Contains(known, g.Key) {
		return
	}
	hint := fmt.Sprintf("keys: has none of tenant %s", g.Tenant)
	if len(known) > 0 {
		hint = fmt.Sprintf("keys: of tenant %s are %s", g.Tenant, strings.Join(known, ", "))
	}
	s.report(fault.ConfigReference, s.at(path+".key"), path+".key", fmt.Sprintf("key %q is not defined", g.Key), hint)
}
