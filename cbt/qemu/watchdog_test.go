package qemu

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
	"github.com/novacron/afterimage/cbt/qmp"
	"github.com/novacron/afterimage/testbed/scale"
)

// The test binary is also the capturing process and the watchdog of the tests
// that stop one; this variable says which.
const roleVariable = "AFTERIMAGE_TEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch role := os.Getenv(roleVariable); role {
	case "":
		os.Exit(m.Run())
	case "capture":
		err = captureProcess()
	case "watchdog":
		err = watchdogProcess()
	default:
		err = fmt.Errorf("no role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// captureOrder is what the test tells the capturing process.
type captureOrder struct {
	QMP, Spare, Dir, NBD string
	Disk                 cbt.Volume
	Node                 string
}

// captureProcess captures into memory and starts its watchdog; it says "synced"
// when it is, once more at every new interval.
func captureProcess() error {
	var order captureOrder
	if err := json.Unmarshal([]byte(os.Getenv("ORDER")), &order); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	dog := exec.Command(os.Args[0])
	dog.Env = append(os.Environ(), roleVariable+"=watchdog")
	dog.ExtraFiles = []*os.File{r}
	dog.Stderr = os.Stderr
	if err := dog.Start(); err != nil {
		return err
	}
	r.Close()
	tr, err := New(Options{
		QMP: order.QMP, WatchdogQMP: order.Spare, Dir: order.Dir, ReadServer: order.NBD,
		Disks: []Disk{{Volume: order.Disk, Node: order.Node}},
		Sink:  cbttest.NewRecorder(order.Disk), Memory: new(cbttest.Memory),
		Incarnation: cbt.Incarnation(cbt.NewID()), StallBudget: 400 * time.Millisecond, Retry: 100 * time.Millisecond,
		Heartbeat: NewHeartbeat(w),
		Log:       slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Events: Events{StateChanged: func(st cbt.VolumeStatus) {
			if st.State == cbt.StateSynced {
				fmt.Printf("synced full=%v\n", st.Resync.Full)
			}
		}},
	})
	if err != nil {
		return err
	}
	return tr.Run(context.Background())
}

func watchdogProcess() error {
	parent, err := os.FindProcess(os.Getppid())
	if err != nil {
		return err
	}
	return RunWatchdog(context.Background(), WatchdogOptions{
		Pipe: os.NewFile(3, "beats"), Proc: parent, StallBudget: 700 * time.Millisecond, KillAfter: time.Minute,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}

// startCapture runs captureProcess; said yields its lines, and is closed at its end.
func startCapture(t *testing.T, m *cbttest.Machine) (cmd *exec.Cmd, said <-chan string) {
	t.Helper()
	v := m.Disks[0].Volume()
	order, err := json.Marshal(captureOrder{QMP: m.QMP, Spare: m.Spare, Dir: m.Dir, NBD: m.NBD, Disk: v, Node: v.Name})
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"=capture", "ORDER="+string(order))
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	go func() {
		defer close(lines)
		var buf [4096]byte
		for {
			n, err := out.Read(buf[:])
			for _, l := range strings.Split(strings.TrimSpace(string(buf[:n])), "\n") {
				if l != "" {
					lines <- l
				}
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, lines
}

func await(t *testing.T, said <-chan string, want string) {
	t.Helper()
	ctx := cbttest.Context(t, patience)
	for {
		select {
		case l, ok := <-said:
			if !ok {
				t.Fatalf("the capturing process ended before it said %q", want)
			}
			if strings.HasPrefix(l, want) {
				return
			}
		case <-ctx.Done():
			t.Fatalf("the capturing process never said %q", want)
		}
	}
}

// longestWrite writes for d, and at least least times, and returns how long the
// slowest write took, but for as long as the machine itself let nobody run.
func longestWrite(t *testing.T, m *cbttest.Machine, d time.Duration, least int) (longest time.Duration, writes int) {
	t.Helper()
	stood := scale.Standstill()
	g := m.Guest(t, m.Disks[0].Name)
	p := bytes.Repeat([]byte{3}, 4096)
	for end := time.Now().Add(d); time.Now().Before(end) || writes < least; writes++ {
		began := time.Now()
		if err := g.WriteAt(cbttest.Context(t, patience), p, int64(writes%200)*4096, false); err != nil {
			t.Fatalf("the guest saw %v", err)
		}
		longest = max(longest, time.Since(began))
	}
	return longest - stood(), writes
}

// TestStoppedCaptureDoesNotHangTheGuest stops the capturing process: within 2 s
// the guest's writes go on, because the watchdog yanks. Woken up, the process
// finds that it stood still, records a gap and catches up by delta.
func TestStoppedCaptureDoesNotHangTheGuest(t *testing.T) {
	m := cbttest.StartQEMU(t, cbttest.DiskSpec{Name: "a", Bytes: 4 << 20})
	cmd, said := startCapture(t, m)
	await(t, said, "synced full=true")
	longestWrite(t, m, 300*time.Millisecond, 10)
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	longest, n := longestWrite(t, m, 3*time.Second, 100)
	t.Logf("process stopped: %d writes, the longest took %v", n, longest)
	if longest > 2*time.Second {
		t.Errorf("guest writes hung for %v, %d were answered", longest, n)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	await(t, said, "synced full=false")
}

// TestStoppedCaptureIsKilledWhereNothingCanBeYanked: a storage daemon knows no
// yank, so the watchdog kills.
func TestStoppedCaptureIsKilledWhereNothingCanBeYanked(t *testing.T) {
	m := cbttest.StartStorageDaemon(t, cbttest.DiskSpec{Name: "a", Bytes: 4 << 20})
	cmd, said := startCapture(t, m)
	await(t, said, "synced")
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	longest, n := longestWrite(t, m, 3*time.Second, 100)
	t.Logf("process stopped: %d writes, the longest took %v", n, longest)
	if longest > 2*time.Second {
		t.Errorf("guest writes hung for %v, %d were answered", longest, n)
	}
	if state, err := cmd.Process.Wait(); err != nil || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process ended with %v, %v", state, err)
	}
}

// fakeMonitor records what is yanked.
type fakeMonitor struct {
	mu      sync.Mutex // guards what follows
	yanked  []string
	resumed int
	err     error
	state   string // of the guest; "": it is paused
	done    chan struct{}
}

func (m *fakeMonitor) Execute(_ context.Context, command string, _, result any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch command {
	case "query-status":
		return json.Unmarshal([]byte(`{"status":"`+cmp.Or(m.state, guestPaused)+`"}`), result)
	case "cont":
		m.resumed++
	}
	return m.err
}
func (m *fakeMonitor) ExecuteOOB(_ context.Context, _ string, a, _ any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.yanked = append(m.yanked, a.(args)["instances"].([]args)[0]["node-name"].(string))
	return m.err
}
func (m *fakeMonitor) Events(int) EventQueue { return nil }
func (m *fakeMonitor) Done() <-chan struct{} { return m.done }
func (m *fakeMonitor) Err() error            { return nil }
func (m *fakeMonitor) Close() error          { return nil }

// TestWatchdogJudges moves the watchdog's clock by hand.
func TestWatchdogJudges(t *testing.T) {
	for name, tc := range map[string]struct {
		oob     bool
		err     error
		silent  time.Duration
		nodes   []string
		still   bool
		state   string
		yanked  int
		resumed int
		killed  bool
		late    bool // it is killed, but not at once
	}{
		"a guest stands still":     {oob: true, still: true, silent: 1100 * time.Millisecond, resumed: 1},
		"not for long":             {oob: true, still: true, silent: 900 * time.Millisecond},
		"still, and no monitor":    {still: true, silent: 1100 * time.Millisecond, late: true},
		"still, and not resumed":   {oob: true, still: true, err: context.DeadlineExceeded, silent: 1100 * time.Millisecond, resumed: 1, late: true},
		"still for another reason": {oob: true, still: true, state: "postmigrate", silent: 1100 * time.Millisecond},
		"still, and it runs":       {oob: true, still: true, state: guestRuns, silent: 1100 * time.Millisecond},
		"still, with nodes":        {oob: true, still: true, nodes: []string{"n"}, silent: 1100 * time.Millisecond, yanked: 1, resumed: 1},
		"in time":                  {oob: true, silent: 900 * time.Millisecond, nodes: []string{"n"}},
		"nothing to protect":       {oob: true, silent: time.Hour},
		"silent":                   {oob: true, silent: 1100 * time.Millisecond, nodes: []string{"n", "o"}, yanked: 2},
		"no monitor":               {silent: 1100 * time.Millisecond, nodes: []string{"n"}, killed: true},
		"refused":                  {oob: true, err: &qmp.Error{Class: "CommandNotFound"}, silent: 1100 * time.Millisecond, nodes: []string{"n"}, yanked: 1, killed: true},
		"hung":                     {oob: true, err: context.DeadlineExceeded, silent: 1100 * time.Millisecond, nodes: []string{"n"}, yanked: 1, killed: true},
	} {
		t.Run(name, func(t *testing.T) {
			victim := exec.Command(os.Args[0]) // never started by name: it waits for its pipe
			victim.Env = append(os.Environ(), roleVariable+"=watchdog")
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			victim.ExtraFiles = []*os.File{r}
			if err := victim.Start(); err != nil {
				t.Fatal(err)
			}
			r.Close()
			defer victim.Wait()
			defer victim.Process.Kill()
			mon := &fakeMonitor{err: tc.err, state: tc.state, done: make(chan struct{})}
			dog := &watchdog{opts: WatchdogOptions{Proc: victim.Process}.withDefaults(), watched: map[string]*watched{}}
			now := time.Now()
			dog.heard(t.Context(), beat{Key: "k", Nodes: tc.nodes, Still: tc.still}, now)
			if tc.oob {
				l := &line{}
				l.set(mon)
				dog.watched["k"].monitor = l
			}
			if killed := dog.judge(t.Context(), now.Add(tc.silent)); killed != tc.killed {
				t.Errorf("killed %v", killed)
			}
			if len(mon.yanked) != tc.yanked || mon.resumed != tc.resumed {
				t.Errorf("yanked %v, resumed %d times", mon.yanked, mon.resumed)
			}
			if tc.killed {
				return
			}
			again := dog.judge(t.Context(), now.Add(tc.silent+time.Second))
			if tc.yanked > 0 && len(mon.yanked) != tc.yanked {
				t.Errorf("yanked again: %v", mon.yanked)
			}
			if tries := 2 * tc.resumed; tc.late && (again || mon.resumed != tries) {
				t.Errorf("killed %v, resumed %d times", again, mon.resumed)
			}
			if (tc.late || tc.yanked > 0) && !dog.judge(t.Context(), now.Add(12*time.Second)) {
				t.Error("still silent after KillAfter, and not killed")
			}
		})
	}
}

func TestBeatsSurviveGarbage(t *testing.T) {
	in := "{\"key\":\"a\",\"nodes\":[\"x\"]}\n{\"key\":\"b\",\"no\n\n[]\n{\"nodes\":[]}\n{\"key\":\"a\",\"gone\":true}\n"
	var got []beat
	if err := readBeats(strings.NewReader(in), func(b beat) { got = append(got, b) }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Nodes[0] != "x" || !got[1].Gone {
		t.Errorf("got %+v", got)
	}
	long := strings.NewReader(strings.Repeat("x", 2*longestBeat))
	if err := readBeats(long, func(beat) {}); !errors.Is(err, errBeat) {
		t.Errorf("an endless line: %v", err)
	}
}

// TestHeartbeatNeverBlocks fills the pipe of a watchdog that does not read.
func TestHeartbeatNeverBlocks(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h := NewHeartbeat(w)
	began := time.Now()
	nodes := []string{strings.Repeat("n", 3000)}
	for range 40 { // 120 kB into a pipe of 64 kB
		h.Beat("k", "", nodes, 0)
	}
	if took := time.Since(began); took > patience { // nobody reads: one that waited would do so for ever
		t.Errorf("beats took %v", took)
	}
	w.Close()
	n := 0
	if err := readBeats(io.Reader(r), func(beat) { n++ }); err != nil || n < 10 {
		t.Errorf("%d beats arrived, %v", n, err)
	}
	var none *Heartbeat
	none.Beat("k", "", nil, 0)
	none.Gone("k")
}

// The capturing process dies while a guest stands still for it, before the watchdog has
// even reached the machine: the guest is resumed all the same.
func TestWatchdogResumesWhenTheProcessIsGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	h := NewHeartbeat(w)
	h.Still("stopped", "/its/monitor", nil, 0)
	h.Beat("runs", "/another", nil, 0)
	w.Close()
	mons := map[string]*fakeMonitor{"/its/monitor": {done: make(chan struct{})}, "/another": {done: make(chan struct{})}}
	proc, err := os.FindProcess(os.Getpid()) // which nothing here kills
	if err != nil {
		t.Fatal(err)
	}
	err = RunWatchdog(cbttest.Context(t, patience), WatchdogOptions{Pipe: r, Proc: proc, StallBudget: time.Hour,
		Dial: func(_ context.Context, path string) (Monitor, error) { return mons[path], nil }})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := mons["/its/monitor"].resumed, mons["/another"].resumed; a != 1 || b != 0 {
		t.Errorf("the guest that stood still was resumed %d times, the other one %d times", a, b)
	}
}

// A tracker that ends in order may leave its guest stopped, if it lost its machine: the
// watchdog resumes it before it forgets it.
func TestWatchdogResumesBeforeItForgets(t *testing.T) {
	mon := &fakeMonitor{done: make(chan struct{})}
	dog := &watchdog{opts: WatchdogOptions{}.withDefaults(), watched: map[string]*watched{}}
	for _, still := range []bool{false, true} {
		dog.heard(t.Context(), beat{Key: "k", Still: still}, time.Now())
		l := &line{stop: func() {}}
		l.set(mon)
		dog.watched["k"].monitor = l
		dog.heard(t.Context(), beat{Key: "k", Gone: true}, time.Now())
		if want := map[bool]int{true: 1}[still]; mon.resumed != want || len(dog.watched) != 0 {
			t.Errorf("still %v: resumed %d times, %d watched", still, mon.resumed, len(dog.watched))
		}
	}
}

// A tracker that may be silent for longer than another one makes nobody wait longer for the
// other's guest.
func TestWatchdogIsAsPatientAsEachTrackerIs(t *testing.T) {
	proc, err := os.FindProcess(os.Getpid()) // its guests are let go: nobody is killed
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	dog := &watchdog{opts: WatchdogOptions{Proc: proc, StallBudget: time.Second, KillAfter: time.Hour}.withDefaults(), watched: map[string]*watched{}}
	for key, patience := range map[string]time.Duration{"silent": 0, "quick": time.Second, "patient": time.Minute} {
		dog.heard(t.Context(), beat{Key: key, Still: true, Patience: patience}, began)
		l := &line{stop: func() {}}
		l.set(&fakeMonitor{done: make(chan struct{})})
		dog.watched[key].monitor = l
	}
	for _, x := range []struct {
		after time.Duration
		freed []string
	}{{time.Second, nil}, {2 * time.Second, []string{"quick", "silent"}}, {time.Minute, []string{"quick", "silent"}}, {time.Minute + 1, []string{"patient", "quick", "silent"}}} {
		if dog.judge(t.Context(), began.Add(x.after)) {
			t.Fatal("somebody was killed")
		}
		var freed []string
		for key, w := range dog.watched {
			if w.freed {
				freed = append(freed, key)
			}
		}
		if slices.Sort(freed); !slices.Equal(freed, x.freed) {
			t.Errorf("after %s: %v were let go, want %v", x.after, freed, x.freed)
		}
	}
}
