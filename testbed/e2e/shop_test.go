package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/novacron/afterimage/recovery/runbook"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/guest"
	"github.com/novacron/afterimage/testbed/libvirtd"
	"github.com/novacron/afterimage/testbed/port"
	"github.com/novacron/afterimage/testbed/scale"
)

// shop is three machines of a libvirtd that site a protects, each writing stamps, and
// site b with a libvirtd of its own, where they are brought up.
type shop struct {
	t        *testing.T
	a, b     *daemon
	from, to *libvirtd.Daemon
	consoles map[string]*guest.Console
	ports    map[string]string // of this host, that lead to each machine's TCP port
	capture  string            // of each group at a
	orders   string            // to the guests, at each boot
	logs     map[string]string // of the consoles at b
}

var shopMachines = []string{"db", "queue", "web"}

// shopDisk is the size of each machine's disk.
const shopDisk = 4 << 20

// macAt is a machine's network card at a site.
func macAt(site, i int) string { return fmt.Sprintf("52:54:00:00:%02x:%02x", site, i) }

// newShop has the machines write as soon as they run.
func newShop(t *testing.T) *shop {
	t.Helper()
	return newShopBy(t, "{mode: per-write}")
}

func newShopBy(t *testing.T, capture string) *shop {
	t.Helper()
	scale.Guest(t)
	scale.Tools(t, "virsh", "qemu-img")
	ctx, cancel := context.WithTimeout(t.Context(), guestPatience)
	defer cancel()
	image, err := guest.Build(ctx)
	if err == nil {
		image, err = guest.WithAgent(ctx, image)
	}
	if errors.Is(err, guest.ErrNoKernel) || errors.Is(err, guest.ErrNoAgent) {
		scale.Missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	orders := fmt.Sprintf("listen port=80;verify slots=%[1]d;stamp slots=%[1]d rate=20", domainSlots)
	s := &shop{t: t, capture: capture, orders: orders, from: libvirtd.Start(t), to: libvirtd.Start(t), consoles: map[string]*guest.Console{}, logs: map[string]string{}, ports: map[string]string{}}
	s.a, s.b = newDaemon(t, "a"), newDaemon(t, "b")
	kernel, initrd := s.from.Path("kernel"), s.from.Path("initrd")
	for from, to := range map[string]string{image.Kernel: kernel, image.Initrd: initrd} {
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.configure()
	for i, name := range shopMachines {
		s.define(i, name, kernel, initrd)
		_, s.ports[name], _ = strings.Cut(port.Address(t), ":")
	}
	for _, name := range shopMachines {
		if _, err := s.consoles[name].Wait(ctx, "verified"); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// define starts a machine at a's libvirtd.
func (s *shop) define(i int, name, kernel, initrd string) {
	s.t.Helper()
	socket := s.from.Path(name + ".sock")
	c, err := guest.ListenConsole(socket)
	if err == nil {
		err = os.Chmod(socket, 0o777)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	s.consoles[name] = c
	orders := guest.KernelLine + " quiet loglevel=1 afterimage=&quot;" + s.orders + "&quot;"
	x := s.from.Guest(name, kernel, initrd, orders, socket, s.from.Image(s.t, name+".qcow2", shopDisk))
	x = strings.Replace(x, "52:54:00:aa:bb:cc", macAt(0, i), 1)
	x = strings.Replace(x, "</devices>", "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel><video><model type='vga'/></video></devices>", 1)
	file := s.from.Path(name + ".xml")
	if err := os.WriteFile(file, []byte(x), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.virsh(s.from, "define", file)
	s.virsh(s.from, "start", name)
}

func (s *shop) configure() {
	user := ""
	if os.Geteuid() == 0 {
		user = ", user: nobody"
	}
	home, listen := port.Address(s.t), port.Address(s.t)
	var a, b strings.Builder
	fmt.Fprintf(&a, "site: a\ndata: %s\nlisten: %s\npeers:\n  - {name: b, address: %q, pin: %q}\nrunbooks: {programs: [/usr/bin/virsh, /usr/bin/test]}\ngroups:\n", s.a.dir, home, listen, s.b.pin())
	fmt.Fprintf(&b, "site: b\ndata: %s\nlisten: %s\npeers:\n  - {name: a, address: %q, pin: %q}\nrunbooks: {programs: [/usr/bin/virsh, /usr/bin/test]}\ngroups:\n", s.b.dir, listen, home, s.a.pin())
	for i, name := range shopMachines {
		fmt.Fprintf(&a, "  - name: %s\n    role: primary\n    peers: [b]\n    libvirt: {domain: %s, uri: %q, sockets: %q%s}\n    stall_budget: 20s\n    capture: %s\n    volumes: [{name: root, size: %d, libvirt: {target: vda}}]\n",
			name, name, s.from.URI, s.from.Path("s"), user, s.capture, shopDisk)
		fmt.Fprintf(&b, "  - name: %s\n    role: replica\n    peers: [a]\n    machine:\n      disks: [{volume: root, id: vda}]\n      health: {prefix: \"verified \", timeout: 3m}\n      ready: 1m\n      libvirt: {uri: %q, sockets: %q%s, macs: [{from: %q, to: %q}]}\n",
			name, s.to.URI, s.to.Path("s"), user, macAt(0, i), macAt(1, i))
	}
	s.a.configure(a.String())
	s.b.configure(b.String())
}

func (s *shop) virsh(d *libvirtd.Daemon, args ...string) string {
	s.t.Helper()
	out, err := exec.Command("virsh", append([]string{"-c", d.URI}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("virsh %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// runbook is three machines in two boot groups: both of the first are up, have their
// address and answer before the second begins. A drill's cards are unplugged, so only
// its agents are asked.
func (s *shop) runbook() []byte {
	// A card of QEMU's own network is at 10.0.2.15; that is where its host leads a
	// forwarded port, and the guest has to be given that address.
	machine := func(name, address string) string {
		return fmt.Sprintf(`      - start: %[1]s
      - agent: %[1]s
      - reip: {machine: %[1]s, interface: eth0, address: "%[3]s/24", gateway: 10.0.2.2, dns: [10.0.2.3]}
      - network: {machine: %[1]s, interfaces: {net0: up}}
      - script: [/usr/bin/virsh, -c, "%[4]s", qemu-monitor-command, %[1]s, --hmp, "hostfwd_add tcp:127.0.0.1:%[2]s-:80"]
        machine: %[1]s
        idempotent: true
        in: [planned, unplanned]
      - script: [/usr/bin/virsh, -c, "%[5]s", qemu-monitor-command, %[1]s, --hmp, "hostfwd_add tcp:127.0.0.1:%[2]s-:80"]
        machine: %[1]s
        idempotent: true
        in: [failback]
      - tcp: "127.0.0.1:%[2]s"
        machine: %[1]s
        in: [planned, unplanned, failback]
      - http: {url: "http://127.0.0.1:%[2]s/", contains: afterimage}
        machine: %[1]s
        in: [planned, unplanned, failback]
`, name, s.ports[name], address, s.to.URI, s.from.URI)
	}
	return []byte("runbook: shop\nmachines: {db: db, queue: queue, web: web}\nboot:\n  - name: data\n    steps:\n" +
		machine("db", "10.0.2.15") + machine("queue", "10.0.2.15") + "  - name: front\n    steps:\n" + machine("web", "10.0.2.15") +
		"      - script: [/usr/bin/test, -d, /]\n        idempotent: true\n")
}

// ordered runs the runbook at the site that it is for and holds its steps to their order.
func (s *shop) ordered(mode, at string) control.RunbookRun {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*guestPatience)
	defer cancel()
	site := s.b
	if mode == "failback" {
		site = s.a
	}
	run, err := site.api.RunRunbook(ctx, control.RunbookRequest{File: "shop.yml", Text: s.runbook(), Mode: mode, At: at, Force: mode == "unplanned", Operator: "tester"}, func(control.Progress) {})
	if err != nil {
		text, _ := json.MarshalIndent(run, "", " ")
		s.t.Fatalf("%s: %v\n%s", mode, err, text)
	}
	var data, front control.RunbookStep
	for _, st := range run.Steps {
		s.t.Logf("%s %-40s %s", mode, st.Name, st.State)
		if st.Boot == "data" && st.Ended.After(data.Ended) {
			data = st
		}
		if st.Boot == "front" && front.Name == "" {
			front = st
		}
	}
	if run.State != "done" || front.Began.Before(data.Ended) {
		s.t.Errorf("%s is %s: %s began %v, %s ended %v", mode, run.State, front.Name, front.Began, data.Name, data.Ended)
	}
	s.reported(run)
	return run
}

// reported holds a run's report to what it must have: each machine's screen, its point's
// chain, and a place in the ledger that stands for all groups.
func (s *shop) reported(run control.RunbookRun) {
	s.t.Helper()
	page, err := os.ReadFile(run.Report)
	if err != nil {
		s.t.Fatal(err)
	}
	if n := strings.Count(string(page), `src="data:image/png;base64,`); n != len(shopMachines) && run.Mode != "failback" {
		s.t.Errorf("the report of %s has %d pictures", run.Mode, n)
	}
	text, err := os.ReadFile(strings.TrimSuffix(run.Report, ".html") + ".json")
	var r runbook.Report
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil || len(r.Machines) != len(shopMachines) || r.RTO <= 0 {
		s.t.Fatalf("report: %v\n%s", err, text)
	}
	for _, m := range r.Machines {
		// The end of its console: what it found, or what it wrote since, where that is long ago.
		told := strings.Contains(m.Text, "verified ") || strings.Contains(m.Text, "stamped ")
		if len(m.Chain) != 64 || m.Point == "" || !told && run.Mode != "failback" || (m.Loss == nil) != (run.Mode == "test") {
			s.t.Errorf("%s, %s: point %q, chain %q, loss %v, console %q", run.Mode, m.Machine, m.Point, m.Chain, m.Loss, m.Text)
		}
	}
}

// all waits until every group is in a state at a site.
func (s *shop) all(at *daemon, state string) {
	s.t.Helper()
	at.until("all are "+state, func(ctx context.Context) bool {
		st, err := at.api.Status(ctx)
		for _, g := range st.Groups {
			if g.State != state {
				return false
			}
		}
		return err == nil && len(st.Groups) == len(shopMachines)
	})
}

// found is what the machine at b found on its disk when it booted last.
func (s *shop) found(name string) guest.Verified {
	s.t.Helper()
	out, said := guest.Verified{}, false
	for line := range bytes.Lines(s.said(name)) {
		if v, err := guest.ParseVerified(strings.TrimSpace(string(line))); err == nil {
			out, said = v, true
		}
	}
	if !said {
		s.t.Fatalf("machine %s has not told what it found", name)
	}
	return out
}

// stamped is the newest stamp that the machine at b has told of.
func (s *shop) stamped(name string) (k uint64) {
	s.t.Helper()
	for line := range bytes.Lines(s.said(name)) {
		if bytes.HasSuffix(line, []byte("\n")) {
			_, _ = fmt.Sscanf(string(line), "stamped %d", &k) // other lines say other things
		}
	}
	return k
}

// said is what the machine at b has written to its console, in all of its lives.
func (s *shop) said(name string) []byte {
	s.t.Helper()
	if s.logs[name] == "" { // its definition goes with it, what it said stays
		logs, err := filepath.Glob(s.to.Path("s/*/console.log"))
		if err != nil {
			s.t.Fatal(err)
		}
		xml := s.virsh(s.to, "dumpxml", name)
		for _, path := range logs {
			if strings.Contains(xml, path) {
				s.logs[name] = path
			}
		}
	}
	text, err := os.ReadFile(s.logs[name])
	if err != nil {
		s.t.Fatalf("machine %s has said nothing: %v", name, err)
	}
	return text
}

// mark names a point of each group, which b has when it returns.
func (s *shop) mark(name string) {
	s.t.Helper()
	for _, g := range shopMachines {
		p, err := s.a.api.Mark(s.t.Context(), control.MarkRequest{Group: g, Name: name})
		if err != nil {
			s.t.Fatal(err)
		}
		s.b.until(g+" has the mark", func(ctx context.Context) bool {
			d, err := s.b.api.Group(ctx, g)
			return err == nil && d.Durable >= p.Seq
		})
	}
}

// quieted has each machine at a write n more stamps and then pause; b has all of them
// when it returns the highest.
func (s *shop) quieted(n uint64) map[string]uint64 {
	s.t.Helper()
	return s.quietedUntil(n, func(ctx context.Context, name string, seq uint64) bool {
		d, err := s.b.api.Group(ctx, name)
		return err == nil && d.Durable >= seq
	})
}

// quietedShort is quieted while hardly anything gets through: b has heard how far a is,
// and holds less. It returns how many records never arrived.
func (s *shop) quietedShort(n uint64) (highest, short map[string]uint64) {
	s.t.Helper()
	short = map[string]uint64{}
	for _, name := range shopMachines {
		if _, err := s.a.api.Limit(s.t.Context(), control.LimitRequest{Group: name, BytesPerSecond: 1 << 10}); err != nil {
			s.t.Fatal(err)
		}
	}
	highest = s.quietedUntil(n, func(ctx context.Context, name string, seq uint64) bool {
		p, err := s.b.api.PlanFailover(ctx, control.FailoverRequest{Group: name, At: "latest", WithoutTail: true})
		d, derr := s.b.api.Group(ctx, name)
		short[name] = p.Loss.NeverArrived.Records
		return err == nil && derr == nil && short[name] > 0 && d.Durable+short[name] == seq
	})
	return highest, short
}

func (s *shop) quietedUntil(n uint64, heard func(ctx context.Context, name string, seq uint64) bool) map[string]uint64 {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), guestPatience)
	defer cancel()
	highest := map[string]uint64{}
	for name, c := range s.consoles {
		if _, err := c.WaitStamped(ctx, c.Stamped()+n); err != nil {
			s.t.Fatal(err)
		}
		if err := c.Send(ctx, "pause"); err != nil {
			s.t.Fatal(err)
		}
		if _, err := c.Wait(ctx, "paused"); err != nil {
			s.t.Fatal(err)
		}
		highest[name] = c.Stamped()
		seq, err := s.a.api.Group(ctx, name)
		if err != nil {
			s.t.Fatal(err)
		}
		s.b.until("b has heard all of "+name, func(ctx context.Context) bool { return heard(ctx, name, seq.Seq) })
	}
	return highest
}

// disaster takes site a away, its machines with it, and returns what a failover to a
// moment is said to lose.
func (s *shop) disaster(at string) map[string]control.Loss {
	s.t.Helper()
	s.a.kill()
	for _, name := range shopMachines {
		s.virsh(s.from, "destroy", name)
	}
	lost := map[string]control.Loss{}
	for _, name := range shopMachines {
		p, err := s.b.api.PlanFailover(s.t.Context(), control.FailoverRequest{Group: name, At: at})
		if err != nil {
			s.t.Fatal(err)
		}
		lost[name] = p.Loss
	}
	return lost
}
