package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/link"
	"github.com/novacron/afterimage/testbed/port"
	"github.com/novacron/afterimage/testbed/scale"
)

// etcd is a server of the test's own, which can be ended and started again.
type etcd struct {
	t      *testing.T
	client string
	args   []string
	cmd    *exec.Cmd
}

func newEtcd(t *testing.T) *etcd {
	t.Helper()
	scale.Tools(t, "etcd")
	client, peer := port.Address(t), "http://"+port.Address(t)
	e := &etcd{t: t, client: client, args: []string{"--name", "w", "--data-dir", t.TempDir(), "--listen-client-urls", "http://" + client, "--advertise-client-urls", "http://" + client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "w=" + peer}}
	e.start()
	t.Cleanup(e.kill)
	return e
}

func (e *etcd) start() {
	e.t.Helper()
	e.cmd = exec.Command("etcd", e.args...)
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	await(e.t, "etcd answers", func() bool {
		return asksWitness(context.Background(), &config.Witness{Etcd: []string{"http://" + e.client}, TTL: config.Duration(8 * time.Second)}) == nil
	})
}

func (e *etcd) kill() {
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait() // an error if it has been waited for
}

// wire is a way over TCP that can be cut.
type wire struct {
	net.Listener
	to  string
	mu  sync.Mutex // guards below
	cut bool
	all []net.Conn
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Listener: l, to: to}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { w.carry(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.Cut()
		work.Wait()
	})
	return w
}

func (w *wire) carry(near net.Conn) {
	defer near.Close()
	far, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer far.Close()
	w.mu.Lock()
	if w.cut {
		w.mu.Unlock()
		return
	}
	w.all = append(w.all, near, far)
	w.mu.Unlock()
	var work sync.WaitGroup
	work.Go(func() { _, _ = io.Copy(far, near); far.Close() })
	_, _ = io.Copy(near, far)
	near.Close()
	work.Wait()
}

// Cut ends what goes over it, and all that comes.
func (w *wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for _, c := range w.all {
		c.Close()
	}
}

// Heal lets through what comes from now on.
func (w *wire) Heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut, w.all = false, nil
}

// guarded is two sites and a witness; the way between them, and a's and b's to the
// witness, can be cut.
type guarded struct {
	*world
	etcd   *etcd
	toEtcd *wire // from a
	beside *wire // from b
	links  []*link.Link
	ca, cb *config.Config
	a, b   *running
}

func newGuarded(t *testing.T, ttl time.Duration) *guarded {
	t.Helper()
	x := guardedSites(t, ttl, "web")
	x.a, x.b = x.run(x.ca), x.run(x.cb)
	x.endAfter()
	x.a.awaitState("web", control.StateSynced)
	stamped(x.a, 1, 10)
	awaitLevel(x.a, x.b, "web")
	await(t, "a holds the right", x.a.groups[0].guard.holds)
	l, release := x.a.lifeOf()
	defer release()
	m, err := l.machine(l.cfg.Machine).Ensure(context.Background(), l.urisOf(l.reigning()))
	if err != nil {
		t.Fatal(err)
	}
	closeMachine(m)
	return x
}

// guardedSites are configured and do not run yet; a is primary of the groups.
func guardedSites(t *testing.T, ttl time.Duration, groups ...string) *guarded {
	t.Helper()
	scale.Tools(t, "qemu-system-x86_64")
	x := &guarded{world: newWorld(t), etcd: newEtcd(t)}
	x.toEtcd, x.beside = newWire(t, x.etcd.client), newWire(t, x.etcd.client)
	x.program(`exec qemu-system-x86_64 "$@"`)
	at := map[string]string{"a": port.Address(t), "b": port.Address(t)}
	config := func(name, peer, etcd, group string) *config.Config {
		pin, err := Pin(x.configure(peer, ""))
		if err != nil {
			t.Fatal(err)
		}
		l, err := link.New(netip.MustParseAddrPort(at[peer]), link.Config{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		x.links = append(x.links, l)
		var b strings.Builder
		fmt.Fprintf(&b, "listen: %s\npeers: [{name: %s, pin: %q, address: %q, transport: quic}]\nwitness: {etcd: [%q], ttl: %s}\ngroups:\n", at[name], peer, pin, l.Addr(), "http://"+etcd, ttl)
		for _, g := range groups {
			fmt.Fprintf(&b, "- name: %s\n  peers: [%s]\n  failover: auto\n  rpo: 1h\n%s%s", g, peer, strings.ReplaceAll(group, "root.img", g+".img"), strings.ReplaceAll(machineOfWeb, "web1", g+"1"))
		}
		return x.configure(name, b.String())
	}
	x.ca = config("a", "b", x.toEtcd.Addr().String(), "  role: primary\n"+oneDisk)
	x.cb = config("b", "a", x.beside.Addr().String(), "")
	return x
}

// endAfter ends the machines and their watchdogs when the test ends.
func (x *guarded) endAfter() {
	x.t.Cleanup(func() {
		for _, c := range []siteOf{{x.a, x.ca}, {x.b, x.cb}} {
			for i, g := range c.r.groups {
				if pid, err := c.r.machineFor(g, c.c.Groups[i].Machine).Process(); err == nil {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
				endDog(g.guard.recall(), c.r.o.HostBoot, 0)
			}
		}
	})
}

type siteOf struct {
	r *running
	c *config.Config
}

func (x *guarded) cut() {
	x.toEtcd.Cut()
	x.cutSites()
}

func (x *guarded) cutSites() {
	for _, l := range x.links {
		l.Cut()
	}
}

func (x *guarded) heal() {
	for _, l := range x.links {
		l.Heal()
	}
	x.toEtcd.Heal()
}

// machineRuns tells whether a site's machine is there and does not stand still.
func (r *running) machineRuns() bool { return r.runs(r.groups[0]) }

// runs is machineRuns of a group of the site.
func (r *running) runs(g *group) bool {
	pid, err := r.machineFor(g, g.cfg.Machine).Process()
	if err != nil {
		return false
	}
	return goesOn(pid) && !dies(pid) && goesOn(pid)
}

// goesOn tells whether a process neither stands still nor ends.
func goesOn(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "stat"))
	if err != nil {
		return false
	}
	_, after, _ := bytes.Cut(stat, []byte(") ")) // from state on: proc_pid_stat(5)
	fields := strings.Fields(string(after))
	if len(fields) < 7 || strings.ContainsAny(fields[0], "TZX") {
		return false
	}
	const exiting, signaled = 0x4, 0x400 // PF_EXITING and PF_SIGNALED of the kernel's sched.h
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return err == nil && flags&(exiting|signaled) == 0
}

// dies tells whether SIGKILL is on its way to a process: one that stood still wakes for
// its end, and for nothing else.
func dies(pid int) bool {
	status, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "status"))
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		set, ok := strings.CutPrefix(line, "SigPnd:")
		if !ok {
			set, ok = strings.CutPrefix(line, "ShdPnd:")
		}
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(set), 16, 64); err != nil || n&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}

func (r *running) alarmed(text string) bool {
	r.t.Helper()
	for _, n := range r.groupLine("web").Notices {
		if strings.Contains(n.Text, text) && n.Level == control.Alarm {
			return true
		}
	}
	return false
}

// A primary that is cut off from its peer and the witness stands still before the peer's
// machine runs; the peer takes over by itself, in so many words, and when the cut is
// healed the old machine does not go on.
func TestCutPrimaryStandsStillBeforeThePeerRuns(t *testing.T) {
	x := newGuarded(t, 4*time.Second)
	var both, bFirst bool
	over, watched := make(chan struct{}), make(chan struct{})
	go func() { // b is looked at first: what a does after that cannot excuse it
		defer close(watched)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for seen := false; ; {
			b := x.b.machineRuns()
			a := x.a.machineRuns()
			both = both || a && b
			if b && !seen {
				seen, bFirst = true, a
			}
			select {
			case <-over:
				return
			case <-tick.C:
			}
		}
	}()
	x.cut()
	await(t, "b's machine runs", x.b.machineRuns)
	if x.a.machineRuns() {
		t.Error("a's machine runs beside b's")
	}
	await(t, "b reigns", func() bool { return x.b.groupLine("web").State == control.StateSynced })
	r := reignOf(t, x.b)
	if r.Role != recovery.Uncommitted || r.Fence != recovery.FenceLeased || r.Unfenced || r.Forced || r.Operator != witnessOperator {
		t.Errorf("recorded as %+v", r)
	}
	await(t, "a says it", func() bool { return x.a.alarmed("the machine is paused") })
	if last, hole := stamps(x.b); last != 10 || hole {
		t.Errorf("b has stamps up to %d, a hole: %v", last, hole)
	}
	await(t, "it is in the ledger", func() bool {
		reports, err := x.b.Reports(context.Background())
		return err == nil && len(reports) > 0
	})
	x.heal()
	await(t, "the sites have met", func() bool { return x.a.groupLine("web").State == control.StateHalted })
	await(t, "a has asked the witness again", func() bool { return x.a.alarmed("another history") || x.a.alarmed(`"b" took it since`) })
	close(over)
	<-watched
	if both || bFirst || x.a.machineRuns() {
		t.Errorf("both ran: %v; a ran when b's was first seen: %v; a runs now: %v", both, bFirst, x.a.machineRuns())
	}
	// Nor does it without a watchdog: the site itself pauses what another one has.
	endDog(x.a.groups[0].guard.recall(), x.a.o.HostBoot, 0)
	if n, err := witness.Signal(x.a.groups[0].guard.marks, unix.SIGCONT); n == 0 || err != nil {
		t.Fatalf("%d machines, %v", n, err)
	}
	await(t, "a pauses it again", func() bool { return !x.a.machineRuns() })
}

// The daemon dies after it has taken a group over and before its machine runs: the next
// one starts that by itself, once it has the right again. What is switched off afterwards
// stays off.
func TestATakeoverThatDiedStartsItsMachine(t *testing.T) {
	x := newGuarded(t, 4*time.Second)
	x.program("exit 1")
	x.cut()
	await(t, "b has taken the group over", func() bool { return x.b.groupLine("web").Role == string(recovery.Uncommitted) })
	await(t, "b says that the machine does not run", func() bool { return x.b.alarmed("web1 is not started: ") })
	x.b.stop()
	x.program(`exec qemu-system-x86_64 "$@"`)
	x.b = x.run(x.cb)
	await(t, "b's machine runs", x.b.machineRuns)
	if x.a.machineRuns() {
		t.Error("a's machine runs beside b's")
	}
	settled := func() bool {
		l, release := x.b.lifeOf()
		defer release()
		var ran cbt.ID
		_, err := l.j.Recall(witnessedKey, &ran)
		return err == nil && ran == l.roleNow().Promotion
	}
	await(t, "that it ran is settled", settled)
}

// A watchdog that dies once the lease is taken, or does not answer for a long time, ends
// no readiness: when the next one works, the group is taken over by itself.
func TestATakeoverWithoutAWatchdogIsTriedAgain(t *testing.T) {
	for _, bad := range []string{"read l; echo ready; read l; exit 0", "exec sleep 5"} {
		t.Run(bad, func(t *testing.T) {
			x := newGuarded(t, 4*time.Second)
			x.b.stop()
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			dog, broken, tried := filepath.Join(x.dir, "dog"), filepath.Join(x.dir, "broken"), filepath.Join(x.dir, "tried")
			text := fmt.Sprintf("#!/bin/sh\n[ -e %s ] && { echo >>%s; %s; }\nexec %s \"$@\"\n", broken, tried, bad, self)
			if err := errors.Join(writeProgram(dog, text), os.WriteFile(broken, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			x.b = x.runWith(x.cb, Options{Executable: dog})
			awaitLevel(x.a, x.b, "web")
			x.cut()
			await(t, "b has tried", func() bool { _, err := os.Stat(tried); return err == nil })
			await(t, "b says that it has no watchdog", func() bool { return strings.Contains(x.b.log.String(), witness.ErrNoWatchdog.Error()) })
			if err := os.Remove(broken); err != nil {
				t.Fatal(err)
			}
			await(t, "b's machine runs", x.b.machineRuns)
			if x.a.machineRuns() {
				t.Error("a's machine runs beside b's")
			}
		})
	}
}

// While the witness is away the primary goes on as long as its peer says that it holds off;
// when the peer is away too, its machine stands still, and goes on when both are back.
// Nothing is promoted.
func TestWitnessAwayPausesNobodyWhileThePeerHoldsOff(t *testing.T) {
	scale.Lasting(t, "it waits for leases to end")
	t.Parallel()
	const ttl = 10 * time.Second
	x := newGuarded(t, ttl)
	x.etcd.kill()
	dead := time.Now()
	await(t, "the lease has ended", func() bool { return time.Since(dead) > ttl+ttl/2 })
	if !x.a.groups[0].guard.holds() || !x.a.machineRuns() {
		t.Fatalf("a stands still though b holds off: %+v", x.a.groupLine("web").Notices)
	}
	x.cutSites()
	await(t, "a's machine stands still", func() bool { return !x.a.machineRuns() })
	await(t, "a says it", func() bool { return x.a.alarmed("the machine is paused") })
	x.heal()
	await(t, "a sends again", func() bool {
		return x.b.lagOf("web", "a", "in").State == "streaming" && x.a.lagOf("web", "b", "out").State == "streaming"
	})
	x.etcd.start()
	await(t, "a's machine goes on", x.a.machineRuns)
	if g := x.b.groupLine("web"); g.Role != "replica" {
		t.Errorf("b is %s", g.Role)
	}
}

// A restart of the daemon goes on with the lease, and with a watchdog of its own.
func TestRestartAdoptsTheLease(t *testing.T) {
	t.Parallel()
	x := newGuarded(t, time.Minute)
	was := x.a.groups[0].guard.recall()
	x.a.stop()
	if !x.a.machineRuns() {
		t.Error("the machine ended, or stands still")
	}
	x.a = x.run(x.ca)
	await(t, "a holds the right", x.a.groups[0].guard.holds)
	now := x.a.groups[0].guard.recall()
	if now.Lease != was.Lease || now.Dog == was.Dog || was.Lease.ID == 0 {
		t.Errorf("was %+v, is %+v", was, now)
	}
	await(t, "the old watchdog is gone", func() bool { // nobody may have waited for it
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", was.Dog))
		return err != nil || len(line) == 0
	})
	if !x.a.machineRuns() {
		t.Error("the machine was paused")
	}
	pids, err := witness.Pack(x.a.groups[0].guard.marks)
	if err != nil || len(pids) != 1 {
		t.Errorf("machines by their marks: %v, %v", pids, err)
	}
}

// packDog is the watchdog process, with the arguments that a guard gives it.
func packDog(args []string) int {
	var marks []string
	for i, a := range args {
		if a == "--mark" {
			marks = append(marks, args[i+1])
		}
	}
	if err := PackDog(os.Stdin, os.Stdout, marks); err != nil {
		return 1
	}
	return 0
}
