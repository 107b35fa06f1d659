package config

import (
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"github.com/novacron/afterimage/recovery/witness"
)

// Witness is an etcd cluster, apart from all sites, that lets one site at a time run a
// group unattended.
type Witness struct {
	Etcd []string    `yaml:"etcd"`          // endpoints: https://etcd1.example.com:2379
	TTL  Duration    `yaml:"ttl,omitempty"` // of a lease: how long nobody takes over after the last sign; default 20s; the same at all sites
	TLS  *WitnessTLS `yaml:"tls,omitempty"`
}

// WitnessTLS is files in PEM.
type WitnessTLS struct {
	CA   string `yaml:"ca,omitempty"`   // that signed the servers; default the system's
	Cert string `yaml:"cert,omitempty"` // of this client; none: it shows none
	Key  string `yaml:"key,omitempty"`
}

// DefaultTTL is a lease's where none is given.
const DefaultTTL = Duration(20 * time.Second)

// FailoverMode says who decides on a failover.
type FailoverMode string

// Values of FailoverMode.
const (
	FailoverManual FailoverMode = "manual" // a person (default)
	FailoverAuto   FailoverMode = "auto"   // this site too, by leases of the witness
)

// UnmarshalText accepts the values.
func (m *FailoverMode) UnmarshalText(text []byte) error {
	switch v := FailoverMode(text); v {
	case FailoverManual, FailoverAuto:
		*m = v
		return nil
	}
	return fmt.Errorf("failover %q is not understood: want auto or manual", text)
}

func (w *Witness) complete(dir string) {
	if w.TTL == 0 {
		w.TTL = DefaultTTL
	}
	if w.TLS == nil {
		return
	}
	for _, p := range []*string{&w.TLS.CA, &w.TLS.Cert, &w.TLS.Key} {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

func (s *shape) witness(w *Witness) {
	if w == nil {
		return
	}
	if len(w.Etcd) == 0 {
		s.absent("witness.etcd", "the cluster's endpoints, such as: etcd: [https://192.0.2.5:2379]")
	}
	for i, e := range w.Etcd {
		at := fmt.Sprintf("witness.etcd[%d]", i)
		switch u, err := url.Parse(e); {
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
			s.wrong(at, fmt.Sprintf("%q is no endpoint", e), "want http://HOST:PORT or https://HOST:PORT")
		case u.Scheme == "http" && w.TLS != nil:
			s.wrong(at, fmt.Sprintf("%q is not encrypted, and there are tls: files", e), "write https://, or take tls: out")
		}
	}
	if time.Duration(w.TTL) < minTTL {
		s.wrong("witness.ttl", fmt.Sprintf("a lease of %v is too short to be kept", w.TTL), fmt.Sprintf("at least %v", Duration(minTTL)))
	}
	if t := w.TLS; t != nil && (t.Cert == "") != (t.Key == "") {
		s.wrong("witness.tls", "cert: and key: belong together", "name both, or neither")
	}
}

// minTTL leaves a renewal its time beside the margins of clocks and of the pause.
const minTTL = 2 * witness.MinTTL

// failover judges what a site needs to act unattended.
func (s *shape) failover(path string, c *Config, g Group) {
	if g.Failover != FailoverAuto {
		return
	}
	at := path + ".failover"
	switch {
	case c.Witness == nil:
		s.wrong(at, "no witness is configured: two sites alone cannot know which of them is cut off", "add witness: {etcd: […]}, or say failover: manual")
	case len(g.Peers) == 0:
		s.wrong(at, "the group has no peers", "name the other sites in peers:")
	}
	if g.RPO == 0 {
		s.absent(path+".rpo", "how much may be lost by a failover that nobody decides on: rpo: 15s")
	}
	if g.Machine == nil && len(g.Taps()) == 0 {
		s.wrong(at, "the group names no machine that a watchdog could pause", "add machine:, qemu: or libvirt:, or say failover: manual")
	}
	for _, t := range g.Taps() {
		if t.Libvirt != nil && g.Boot != BootAsk {
			s.wrong(at, fmt.Sprintf("libvirtd starts %s with its host, and asks nobody", t.Libvirt.Domain), "add boot: ask to the group")
			break
		}
	}
}
