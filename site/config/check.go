package config

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"strings"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/site/fault"
)

// maxSocketPath is what sockaddr_un holds, less its ending zero byte.
const maxSocketPath = 107

// at is where path stands, or the nearest thing around it that the file has.
func (s *shape) at(path string) place {
	for {
		if p, ok := s.places[path]; ok {
			return p
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return place{1, 1}
		}
		path = path[:i]
	}
}

func (s *shape) wrong(path, what, hint string) {
	s.report(fault.ConfigValue, s.at(path), path, what, hint)
}
func (s *shape) absent(path, hint string) {
	s.report(fault.ConfigAbsent, s.at(path), path, fmt.Sprintf("%s is missing", last(path)), hint)
}

// uniques finds values that must differ and do not.
type uniques map[string]string // value to the path that has it

func (u uniques) add(s *shape, path, what, value string) {
	if value == "" {
		return
	}
	if first, taken := u[value]; taken {
		s.report(fault.ConfigDuplicate, s.at(path), path, fmt.Sprintf("%s %q is used twice", what, value), fmt.Sprintf("%s has it, line %d", first, s.at(first).line))
		return
	}
	u[value] = path
}

// perMachine are the uniques of each machine.
type perMachine map[string]uniques

func (p perMachine) of(machine string) uniques {
	if p[machine] == nil {
		p[machine] = uniques{}
	}
	return p[machine]
}

// check judges the meaning of c, which has its defaults.
func (s *shape) check(c *Config) {
	s.name("site", c.Site, "a short name of this site, such as: site: berlin")
	if c.Data == "" {
		s.absent("data", "the directory of the journals, such as: data: /var/lib/afterimage")
	}
	sockets := uniques{}
	for path, v := range map[string]string{"control": c.Control, "nbd": c.NBD} {
		s.socket(path, v)
	}
	sockets.add(s, "control", "socket", c.Control)
	sockets.add(s, "nbd", "socket", c.NBD)
	s.address("listen", c.Listen)
	s.address("metrics", c.Metrics)

	names, pins := uniques{}, uniques{}
	for i, p := range c.Peers {
		path := fmt.Sprintf("peers[%d]", i)
		s.name(path+".name", p.Name, "the peer's own site: name")
		names.add(s, path+".name", "peer", p.Name)
		if p.Name != "" && p.Name == c.Site {
			s.wrong(path+".name", fmt.Sprintf("peer %q has this site's own name", p.Name), "every site has a name of its own")
		}
		s.address(path+".address", p.Address)
		s.pin(path+".pin", p.Pin)
		s.bandwidth(path, p.BWLimit, p.TZ)
		s.transport(path, p)
		if p.Limit > 0 && p.BWLimit != "" {
			s.wrong(path+".limit", "the peer has a limit: and a bwlimit:", "keep one of them")
		}
		if p.Coalesce != nil && p.Coalesce.Behind <= 0 {
			s.absent(path+".coalesce.behind", "how far behind the peer may be, such as: coalesce: {behind: 10m}")
		}
		pins.add(s, path+".pin", "pin", p.Pin)
	}
	s.keys(c)
	s.runbooks(c.Runbooks)
	s.witness(c.Witness)
	refs, images, taps := uniques{}, uniques{}, uniques{}
	for i, g := range c.Groups {
		path := fmt.Sprintf("groups[%d]", i)
		s.group(path, c, g)
		if g.Name != "" {
			refs.add(s, path+".name", "group", g.Ref())
		}
		for k, v := range g.Volumes {
			if v.Embedded != nil {
				images.add(s, fmt.Sprintf("%s.volumes[%d].embedded.image", path, k), "image", v.Embedded.Image)
			}
		}
		tapped := func(path string, q *QEMU) {
			if q != nil {
				taps.add(s, path+".qemu.qmp", "socket", q.QMP)
				taps.add(s, path+".qemu.watchdog_qmp", "socket", q.Watchdog)
			}
		}
		tapped(path, g.QEMU)
		for k, m := range g.Machines {
			tapped(fmt.Sprintf("%s.machines[%d]", path, k), m.QEMU)
		}
	}
}

func (s *shape) group(path string, c *Config, g Group) {
	s.name(path+".name", g.Name, "the name that commands use")
	s.bandwidth(path, g.BWLimit, g.TZ)
	s.name(path+".tenant", g.Tenant, "")
	for i, p := range g.Peers {
		if _, ok := c.Peer(p); !ok {
			var known []string
			for _, q := range c.Peers {
				known = append(known, q.Name)
			}
			hint := "peers: defines none"
			if len(known) > 0 {
				hint = "peers: defines " + strings.Join(known, ", ")
			}
			s.report(fault.ConfigReference, s.at(fmt.Sprintf("%s.peers[%d]", path, i)), path, fmt.Sprintf("peer %q is not defined", p), hint)
		}
	}
	s.sending(path, g)
	s.history(path, g)
	s.objectives(path, g)
	s.keyOf(path, c, g)
	if g.Role == Primary && len(g.Volumes) == 0 && !g.capturesAll() {
		hint := "a primary captures at least one volume"
		if g.Libvirt != nil {
			hint += "; libvirt: {disks: all} captures all disks of the domain"
		}
		s.absent(path+".volumes", hint)
	}
	names, nodes := uniques{}, perMachine{}
	for i, v := range g.Volumes {
		at := fmt.Sprintf("%s.volumes[%d]", path, i)
		names.add(s, at+".name", "volume", v.Name)
		if v.QEMU != nil {
			nodes.of(v.Machine).add(s, at+".qemu.node", "node", v.QEMU.Node)
		}
		if v.Libvirt != nil {
			nodes.of(v.Machine).add(s, at+".libvirt.target", "disk", v.Libvirt.Target)
		}
		s.volume(at, g, v)
	}
	if g.QEMU != nil {
		s.qemu(path+".qemu", g.QEMU)
	}
	s.machines(path, g)
	if g.Libvirt != nil {
		s.domain(path+".libvirt", g)
	}
	if g.Capture != nil {
		s.capture(path+".capture", g)
	}
	if g.Quiesce != nil {
		s.quiesce(path+".quiesce", g)
	}
	if g.Detect != nil {
		s.detect(path+".detect", g.Detect)
	}
	if g.Machine != nil {
		s.started(path+".machine", g)
	}
	s.boot(path, g)
	s.failover(path, c, g)
	if g.Fence != nil {
		s.fence(path+".fence", g.Fence)
		s.fencesAll(path+".fence", g)
	}
}

func (s *shape) volume(path string, g Group, v Volume) {
	s.name(path+".name", v.Name, "a name within the group, such as root")
	switch {
	case v.Size == 0:
		s.absent(path+".size", "the disk's size, such as: size: 20GiB")
	case v.Size%cbt.SectorBytes != 0:
		s.wrong(path+".size", fmt.Sprintf("size %d is not a multiple of %d bytes", int64(v.Size), cbt.SectorBytes), "disks consist of whole sectors")
	}
	of, ok := s.machineOf(path, g, v)
	switch {
	case !ok:
	case v.Embedded != nil && (v.QEMU != nil || v.Libvirt != nil):
		s.wrong(path, fmt.Sprintf("volume %q is both embedded and tapped", v.Name), "keep one of embedded:, qemu: and libvirt:")
	case v.QEMU != nil && v.Libvirt != nil:
		s.wrong(path, fmt.Sprintf("volume %q is tapped through qemu: and through libvirt:", v.Name), "keep one of them")
	case v.Libvirt != nil:
		s.domainDisk(path, of.Group, v)
	case v.Embedded == nil && v.QEMU == nil && g.Role == Primary:
		s.absent(path+".embedded", "a primary's volume is one of embedded: {image: FILE}, qemu: {node: NAME} and libvirt: {target: vda}")
	case v.Embedded != nil && v.Embedded.Image == "":
		s.absent(path+".embedded.image", "the file that holds the disk")
	case v.QEMU != nil && v.QEMU.Node == "":
		s.absent(path+".qemu.node", "the node name of the disk (QMP query-named-block-nodes)")
	case v.QEMU != nil && of.QEMU == nil && of.Guest != "":
		s.report(fault.ConfigReference, s.at(path+".qemu"), path, fmt.Sprintf("volume %q is tapped through qemu:, but machine %q is not", v.Name, of.Guest), "a domain's disk is libvirt: {target: vda}")
	case v.QEMU != nil && of.QEMU == nil:
		s.report(fault.ConfigReference, s.at(path+".qemu"), path, fmt.Sprintf("volume %q is tapped, but the group names no machine", v.Name), "add to the group: qemu: {qmp: SOCKET}")
	}
}

func (s *shape) machine(path string, g Group, m *Machine) {
	s.name(path+".name", m.Name, "")
	if len(m.Disks) == 0 {
		s.absent(path+".disks", "a machine has at least one disk, such as: disks: [{volume: root, id: drive0}]")
	}
	ids := uniques{}
	for i, d := range m.Disks {
		at := fmt.Sprintf("%s.disks[%d]", path, i)
		s.name(at+".volume", d.Volume, "a volume of the group")
		s.name(at+".id", d.ID, "the block node's name, such as drive0")
		ids.add(s, at+".id", "disk id", d.ID)
		known := len(g.Volumes) == 0 // a replica learns its volumes from the history
		for _, v := range g.Volumes {
			known = known || v.Name == d.Volume
		}
		if !known && d.Volume != "" {
			s.report(fault.ConfigReference, s.at(at+".volume"), at, fmt.Sprintf("volume %q is not defined", d.Volume), "the group's volumes: "+volumeNames(g))
		}
	}
	if m.Libvirt != nil {
		s.machineDomain(path, m)
	}
	if h := m.Health; h != nil && h.By == ByAgent && h.Prefix != "" {
		s.wrong(path+".health.prefix", "an agent says no line", "keep one of by: agent and prefix:")
	}
	if h := m.Health; h != nil && h.Prefix == "" && h.By != ByAgent {
		s.absent(path+".health.prefix", "how the line begins that tells that the machine is up")
	}
	for i, a := range m.Args {
		for _, word := range blanks(a) {
			if !known[word] {
				s.wrong(fmt.Sprintf("%s.args[%d]", path, i), fmt.Sprintf("{%s} stands for nothing", word), "known are {dir}, {name}, {qmp}, {qmp2}, {serial}, {nbd}, {uri:VOLUME}, {disk:VOLUME}")
			}
		}
	}
}

// known are the words that may stand in braces in machine arguments.
var known = map[string]bool{"dir": true, "serial": true, "qmp": true, "qmp2": true, "nbd": true, "name": true}

// blanks are the words in braces of arg that look like ours: letters and
// digits only. Braces of JSON (-blockdev '{"driver":…}') do not.
func blanks(arg string) []string {
	var words []string
	for {
		_, rest, ok := strings.Cut(arg, "{")
		if !ok {
			return words
		}
		word, tail, ok := strings.Cut(rest, "}")
		if ok && word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyz0123456789") == "" {
			words, rest = append(words, word), tail
		}
		arg = rest
	}
}

func volumeNames(g Group) string {
	var ns []string
	for _, v := range g.Volumes {
		ns = append(ns, v.Name)
	}
	return strings.Join(ns, ", ")
}

func (s *shape) name(path, v, hint string) {
	if v == "" {
		s.absent(path, hint)
	} else if err := checkName(v); err != nil {
		s.wrong(path, fmt.Sprintf("%q is not a name", v), err.Error())
	}
}

func (s *shape) address(path, v string) {
	if v == "" {
		return
	}
	if _, port, err := net.SplitHostPort(v); err != nil || port == "" {
		s.wrong(path, fmt.Sprintf("%q is not an address", v), "want HOST:PORT, such as 192.0.2.1:7700 or [2001:db8::1]:7700")
	} else if _, err := net.LookupPort("udp", port); err != nil {
		s.wrong(path, fmt.Sprintf("%q is not a port", port), "want a number from 1 to 65535")
	}
}

func (s *shape) socket(path, v string) {
	if len(v) > maxSocketPath {
		if _, given := s.places[path]; !given {
			path = "data" // the default lies below it
		}
		s.wrong(path, fmt.Sprintf("the path of a unix socket may have %d bytes, this one has %d", maxSocketPath, len(v)), "name a shorter one, such as /run/afterimage/"+last(path)+".sock")
	}
}

// pin judges the form "sha256:" and 43 characters of base64url or 64 of hex.
func (s *shape) pin(path, v string) {
	if v == "" {
		return
	}
	digest, ok := strings.CutPrefix(v, "sha256:")
	var raw []byte
	var err error
	if len(digest) == 64 {
		raw, err = hex.DecodeString(digest)
	} else {
		raw, err = base64.RawURLEncoding.Strict().DecodeString(digest)
	}
	if !ok || err != nil || len(raw) != 32 {
		s.wrong(path, fmt.Sprintf("%q is not a pin", v), "want sha256: and the digest that \"afterimage peer pin\" prints at the peer")
	}
}
