package witness_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
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
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/testbed/scale"
)

// The test's own binary plays the other processes: a site, its machine, its watchdog.
const roleVariable = "AFTERIMAGE_WITNESS_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(m.Run())
	case "site":
		err = siteProcess()
	case "machine":
		err = machineProcess()
	case "packdog":
		err = witness.PackDog(os.Stdin, os.Stdout, []witness.Mark{witness.Mark(os.Args[1])})
	case "dog":
		pid, _ := strconv.Atoi(os.Args[1])
		err = witness.Dog(os.Stdin, os.Stdout, pid)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func self(role string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

// monotonic is one clock for all processes of a host.
func monotonic() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano()
}

const etcdTTL = 8 * time.Second

// siteProcess is args: endpoint, group, name, log. It takes the right whenever it can,
// lets its machine run, and gives up after spans that its name and group give.
func siteProcess() error {
	endpoint, name, log := os.Args[1], os.Args[3], os.Args[4]
	var group cbt.ID
	b, err := hex.DecodeString(os.Args[2])
	if err != nil {
		return err
	}
	copy(group[:], b)
	w, err := witness.OpenEtcd(witness.EtcdOptions{Endpoints: []string{endpoint}, Dial: time.Second})
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(uint64(group[0]), uint64(name[0])))
	for {
		// Asked first, for processes are dear; what it says is no right to anything.
		ask, done := context.WithTimeout(context.Background(), etcdTTL/2)
		_, held, err := w.Holder(ask, group)
		done()
		if err == nil && !held {
			err = siteReign(w, group, name, log, r)
		}
		if err != nil || held {
			_ = wait(context.Background(), time.Duration(r.Int64N(int64(time.Second))))
		}
	}
}

func siteReign(w *witness.Etcd, group cbt.ID, name, log string, r *rand.Rand) error {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	machine := self("machine")
	machine.Stdout = f
	start, err := machine.StdinPipe()
	if err != nil {
		return err
	}
	machine.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // it outlives the site
	if err := machine.Start(); err != nil {
		return err
	}
	defer func() { _ = machine.Wait() }()
	defer func() { _ = machine.Process.Kill() }()
	dog, err := witness.StartKennel(self("dog", strconv.Itoa(machine.Process.Pid)))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), etcdTTL/2)
	defer cancel()
	call := monotonic()
	g, err := witness.Take(ctx, w, group, name, etcdTTL, dog)
	if err != nil {
		end, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		_ = dog.Disarm(end)
		return err
	}
	fmt.Fprintf(f, "run %d %d\n", call, monotonic())
	if _, err := start.Write([]byte("go\n")); err != nil { // it stood still until now
		return err
	}
	span, done := context.WithTimeout(context.Background(), time.Duration(r.Int64N(int64(3*etcdTTL))))
	defer done()
	if err := g.Keep(span); err != nil {
		return err // lost: the dog has paused the machine, and it is killed then
	}
	if err := machine.Process.Kill(); err != nil {
		return err
	}
	_ = machine.Wait()
	end, stop := context.WithTimeout(context.Background(), etcdTTL)
	defer stop()
	return g.Release(end)
}

// machineProcess stands still until it is told, then writes when it ran.
func machineProcess() error {
	fmt.Printf("pid %d\n", os.Getpid())
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return nil // its site died before
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if _, err := fmt.Printf("tick %d\n", monotonic()); err != nil {
			return err
		}
	}
	return nil
}

// etcdWorld is a group and its two sites.
type etcdWorld struct {
	t     *testing.T
	url   string
	group cbt.ID
	dir   string

	mu    sync.Mutex // guards what follows
	n     int
	sites map[string]*exec.Cmd

	machines []string // process ids that were seen
}

func (w *etcdWorld) start(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.n++
	cmd := self("site", w.url, hex.EncodeToString(w.group[:]), name, filepath.Join(w.dir, fmt.Sprintf("%s.%03d", name, w.n)))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = nil
	if err := cmd.Start(); err != nil {
		w.t.Error(err)
		return
	}
	w.sites[name] = cmd
}

func (w *etcdWorld) kill(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.sites[name].Process.Signal(syscall.SIGCONT)
	_ = w.sites[name].Process.Kill()
	_ = w.sites[name].Wait()
}

func (w *etcdWorld) awaitReign() {
	late := time.After(2 * time.Minute)
	for {
		for _, o := range w.history().ops {
			if o.Input.(op).kind == opTick {
				return
			}
		}
		select {
		case <-late:
			w.t.Fatal("no site has the right after two minutes")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// suffer stops and kills the sites now and then until ctx ends.
func (w *etcdWorld) suffer(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		name := string(rune('a' + r.IntN(2)))
		span := time.Duration(r.Int64N(int64(2 * etcdTTL)))
		if r.IntN(2) == 0 {
			w.kill(name)
			_ = wait(ctx, span/4)
			w.start(name)
		} else {
			_ = w.sites[name].Process.Signal(syscall.SIGSTOP)
			_ = wait(ctx, span)
			_ = w.sites[name].Process.Signal(syscall.SIGCONT)
		}
		_ = wait(ctx, span)
	}
}

// bury ends a machine that its site left behind.
func (w *etcdWorld) bury(pid string) {
	env, err := os.ReadFile(filepath.Join("/proc", pid, "environ"))
	if err != nil || !strings.Contains(string(env), roleVariable+"=machine") {
		return
	}
	if n, err := strconv.Atoi(pid); err == nil {
		_ = syscall.Kill(n, syscall.SIGKILL)
	}
}

// history reads what the sites and machines wrote; every file is one life of a site.
func (w *etcdWorld) history() *history {
	h := &history{}
	files, err := filepath.Glob(filepath.Join(w.dir, "*"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			w.t.Fatal(err)
		}
		site := filepath.Base(f)[:1]
		var took, last, seen int64 // asked for the right; the newest tick; the newest on record
		stop := func() {
			if last != 0 {
				h.add(opTick, site, last, last)
			}
			if took != 0 { // a machine that never ran may have stood still at once
				h.add(opStop, site, max(took, last+1), never)
			}
		}
		for _, line := range strings.SplitAfter(string(text), "\n") {
			var a, b int64
			switch {
			case !strings.HasSuffix(line, "\n"): // cut short by its end
			case strings.HasPrefix(line, "pid "):
				w.machines = append(w.machines, strings.TrimSpace(line[len("pid "):]))
			case strings.HasPrefix(line, "run "):
				if _, err := fmt.Sscanf(line, "run %d %d", &a, &b); err != nil {
					w.t.Fatalf("%q: %v", line, err)
				}
				stop()
				h.add(opRun, site, a, b)
				took, last, seen = a, 0, b
			default:
				if _, err := fmt.Sscanf(line, "tick %d", &a); err != nil {
					w.t.Fatalf("%q: %v", line, err)
				}
				if last = a; a-seen > int64(500*time.Millisecond) { // the last one is always there
					h.add(opTick, site, a, a)
					seen = a
				}
			}
		}
		stop()
	}
	return h
}

// Groups of two sites each, with a real etcd: sites that are stopped and killed, an etcd
// that is stopped, killed and comes back. Their machines and watchdogs are processes.
// Two never run at once.
func TestNeverTwoMachinesWithEtcd(t *testing.T) {
	if testing.Short() || scale.Race {
		t.Skip("it takes the better part of a minute")
	}
	e := startEtcd(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	n := scale.Scale(20)
	worlds := make([]*etcdWorld, n)
	for i := range worlds {
		w := &etcdWorld{t: t, url: e.url, group: cbt.NewID(), dir: t.TempDir(), sites: map[string]*exec.Cmd{}}
		worlds[i] = w
		for _, name := range []string{"a", "b"} {
			w.start(name)
		}
	}
	for _, w := range worlds { // each has had a reign before anything goes wrong
		w.awaitReign()
	}
	span := 5 * etcdTTL
	if !scale.Sweeps() {
		span = 2 * etcdTTL
	}
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	var wg sync.WaitGroup
	for i, w := range worlds {
		wg.Go(func() { w.suffer(ctx, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	wg.Go(func() { e.suffer(ctx, rand.New(rand.NewPCG(seed, 1000))) })
	wg.Wait()
	runs, changes := 0, 0
	for _, w := range worlds {
		w.kill("a")
		w.kill("b")
		h := w.history()
		for _, pid := range w.machines {
			w.bury(pid)
		}
		ok, r, c := h.verdict(t)
		if !ok {
			t.Errorf("group %s: two machines ran at once; see %s", w.group.Short(), w.dir)
		}
		runs, changes = runs+r, changes+c
	}
	t.Logf("%d reigns, %d changes of hands", runs, changes)
	if runs < n {
		t.Errorf("only %d reigns in %d worlds", runs, n)
	}
	scale.Counted(t, "witness-etcd-schedules", n, 20)
}

// suffer makes etcd slow, and kills it, until ctx ends; it runs at the end.
func (e *etcd) suffer(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		_ = wait(ctx, time.Duration(r.Int64N(int64(etcdTTL))))
		span := time.Duration(r.Int64N(int64(etcdTTL)))
		if r.IntN(3) == 0 {
			e.kill()
			_ = wait(ctx, span/4)
			e.cmd = exec.Command(e.cmd.Path, e.cmd.Args[1:]...)
			if e.cmd.Start() != nil {
				return
			}
		} else {
			_ = e.cmd.Process.Signal(syscall.SIGSTOP)
			_ = wait(ctx, span/2)
			_ = e.cmd.Process.Signal(syscall.SIGCONT)
		}
	}
}
