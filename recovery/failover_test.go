package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/embedded"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/testbed/scale"
)

// emptyMachine is a QEMU without a processor: it runs in no time.
func emptyMachine(dir string) Machine {
	return Machine{
		Name: "empty", Binary: "qemu-system-x86_64", Dir: filepath.Join(dir, "m"), Disks: []MachineDisk{{"root", "disk0"}},
		Args: []string{"-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-chardev", "file,id=s,path={serial}"},
	}
}

func kill(t *testing.T, m Machine) {
	t.Helper()
	t.Cleanup(func() {
		if r, err := m.Attach(context.Background()); err == nil {
			must(t, r.Kill(context.Background()))
			must(t, r.Close())
		}
	})
}

// Promise 13, for the whole failover: it fails at each of its steps, what was
// written in the new epoch meanwhile stays, and run again it ends as if it had not
// failed: one promotion, one machine.
func TestFailoverInterrupted(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	for _, at := range []StepName{StepPromote, StepAnnounce, StepServe, StepStart, StepHealth} {
		t.Run(string(at), func(t *testing.T) {
			ctx := testContext(t)
			dir := shortDir(t)
			j := open(t, t.TempDir(), newIdentity())
			defer j.close(t)
			v := volume("root", 1<<20)
			w := begin(t, j, "source")
			synced(t, w, v)
			data := bytes.Repeat([]byte{0x11}, 4096)
			write(t, w, v, 0, data)
			point := resolve(t, j.Journal, "latest")
			m := emptyMachine(dir)
			kill(t, m)
			x := &exports{t: t, socket: filepath.Join(dir, "nbd"), volume: v}
			f := Failover{
				Plan:  NewPlan(Inputs{Group: "g", Site: "here", At: "latest", Point: point, Head: j.Head(), Volumes: []cbt.Volume{v}, Machine: m.Name, Now: time.Now()}),
				Force: true, Operator: "op", History: j.Journal, Machine: &m, Announce: func(context.Context, journal.Epoch) error { return nil },
				Serve: func(_ context.Context, w *journal.Writer) (map[string]string, error) {
					x.device = embedded.NewJournaled(v, w)
					if x.stop == nil {
						x.start()
						t.Cleanup(x.end)
					}
					return map[string]string{"root": x.uri()}, nil
				},
			}
			bad, good := f, f
			var wrote []byte
			switch at {
			case StepPromote:
				bad.History = &failing{Journal: j.Journal, n: 3}
			case StepAnnounce:
				bad.Announce = func(context.Context, journal.Epoch) error { return errPlanted }
			case StepServe:
				bad.Serve = func(_ context.Context, w *journal.Writer) (map[string]string, error) {
					wrote = bytes.Repeat([]byte{0x22}, 4096)
					write(t, w, v, 4096, wrote)
					return nil, errPlanted
				}
			case StepStart:
				broken := m
				broken.Args = append([]string{"-no-such-option"}, m.Args...)
				bad.Machine = &broken
			case StepHealth:
				bad.Health = Health{Prefix: "never", Timeout: 50 * time.Millisecond}
			}
			out, err := bad.Run(ctx)
			if err == nil || out.Failed != at || out.Steps[len(out.Steps)-1].Error == "" || out.RTOSeconds != 0 {
				t.Fatalf("failed at %q: %v", out.Failed, err)
			}
			if out.Stands() != (at != StepPromote) {
				t.Errorf("stands %v", out.Stands())
			}
			again, err := good.Run(ctx)
			must(t, err)
			if !again.Resumed || at != StepPromote && again.Reign.Promotion != out.Reign.Promotion || again.Reign.From != point.Position {
				t.Errorf("the second run promoted anew: %+v, first %+v", again.Reign, out.Reign)
			}
			if at == StepHealth && (!again.Machine.Adopted || again.Machine.PID != out.Machine.PID) {
				t.Errorf("a second machine: %+v", again.Machine)
			}
			got := make([]byte, 8192)
			must(t, again.Writer.ReadHead(ctx, v.ID, 0, got))
			if !bytes.Equal(got[:4096], data) || wrote != nil && !bytes.Equal(got[4096:], wrote) {
				t.Error("the disk is not what was promoted and written")
			}
			if n := len(processesOf(t, m)); n != 1 {
				t.Errorf("%d processes of the machine", n)
			}
			must(t, again.Machine.Close())
		})
	}
}

// processesOf finds QEMUs by the pid file on their command line.
func processesOf(t *testing.T, m Machine) (pids []string) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	for _, path := range lines {
		b, _ := os.ReadFile(path) // it may have gone
		if bytes.Contains(b, []byte("-pidfile\x00"+m.pidFile()+"\x00")) {
			pids = append(pids, strings.Split(path, "/")[2])
		}
	}
	return pids
}

// parentOf is the process that started pid, or who inherited it.
func parentOf(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	_, rest, _ := strings.Cut(string(status), "\nPPid:")
	line, _, _ := strings.Cut(rest, "\n")
	parent, err := strconv.Atoi(strings.TrimSpace(line))
	must(t, err)
	return parent
}

// TestStarterProcess is no test: it is the process that TestEnsureSurvivesItsStarter
// kills.
func TestStarterProcess(t *testing.T) {
	dir := os.Getenv("AFTERIMAGE_TEST_STARTER")
	if dir == "" {
		t.Skip("only for TestEnsureSurvivesItsStarter")
	}
	fmt.Println("starting")
	_, err := emptyMachine(dir).Ensure(context.Background(), map[string]string{"root": os.Getenv("AFTERIMAGE_TEST_URI")})
	fmt.Println("started", err)
}

// The process that starts a machine is killed at random moments, and another one
// ensures the machine: it runs once, and the one that ran goes on.
func TestEnsureSurvivesItsStarter(t *testing.T) {
	scale.Tools(t, "qemu-system-x86_64")
	rng := seeded(t)
	rounds := max(scale.Scale(40), 4)
	adopted := 0
	for range rounds {
		dir := shortDir(t)
		j := open(t, t.TempDir(), newIdentity())
		v := volume("root", 1<<20)
		w := begin(t, j, "here")
		synced(t, w, v)
		x := &exports{t: t, socket: filepath.Join(dir, "nbd"), volume: v, device: embedded.NewJournaled(v, w)}
		x.start()
		m := emptyMachine(dir)
		kill(t, m)
		adopted += starterKilled(t, rng, m, dir, x.uri())
		x.end()
		j.close(t)
	}
	t.Logf("%d of %d machines ran when their starter was gone", adopted, rounds)
	scale.Counted(t, "recovery-starters-killed", rounds, 40)
}

func starterKilled(t *testing.T, rng *rand.Rand, m Machine, dir, uri string) int {
	t.Helper()
	ctx := testContext(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestStarterProcess$")
	cmd.Env = append(os.Environ(), "AFTERIMAGE_TEST_STARTER="+dir, "AFTERIMAGE_TEST_URI="+uri)
	said, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = said.Read(make([]byte, len("starting")))
	must(t, err)
	<-time.After(time.Duration(rng.IntN(60)) * time.Millisecond)
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	r, err := m.Ensure(ctx, map[string]string{"root": uri})
	must(t, err)
	defer r.Close()
	waitUntil(t, "one process", func() bool { return len(processesOf(t, m)) == 1 }) // a loser takes a moment to go
	if pids := processesOf(t, m); pids[0] != fmt.Sprint(r.PID) {
		t.Errorf("process %d is told, %v runs", r.PID, pids)
	}
	if started := parentOf(t, r.PID) == os.Getpid(); started == r.Adopted {
		t.Errorf("adopted %v, and a child of ours: %v", r.Adopted, started)
	}
	must(t, r.Kill(ctx))
	if r.Adopted {
		return 1
	}
	return 0
}

func TestFailoverRefusesBeforeItActs(t *testing.T) {
	j := open(t, t.TempDir(), newIdentity())
	defer j.close(t)
	v := volume("root", 1<<20)
	w := begin(t, j, "source")
	synced(t, w, v)
	plan := NewPlan(Inputs{Group: "g", Site: "here", At: "latest", Point: resolve(t, j.Journal, "latest"), Head: j.Head(), Now: time.Now()})
	wrong := emptyMachine("/m")
	wrong.Binary = ""
	mute := emptyMachine("/m")
	mute.Args = mute.Args[:1]
	for _, f := range []Failover{
		{Plan: plan, History: j.Journal}, {Plan: plan, History: j.Journal, Force: true, Machine: &wrong},
		{Plan: plan, History: j.Journal, Force: true, Machine: &mute, Health: Health{Prefix: "up"}},
	} {
		out, err := f.Run(testContext(t))
		if !errors.Is(err, ErrUnfenced) && !errors.Is(err, ErrMachine) || out.Stands() {
			t.Errorf("went on: %v", err)
		}
	}
	if _, ok, _ := Newest(j); ok || len(j.Branches()) != 1 {
		t.Error("something was done")
	}
}
