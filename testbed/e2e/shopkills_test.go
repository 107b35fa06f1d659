package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/testbed/libvirtd"
	"github.com/novacron/afterimage/testbed/scale"
)

// killed is a run of the runbook whose daemon is killed with SIGKILL, each time that as
// many steps more were done as deaths says; each time the next daemon is told to resume
// it by the command. between is what has to hold before that.
func (s *shop) killed(mode string, deaths []int, between func(run string)) control.RunbookRun {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*guestPatience)
	defer cancel()
	over := make(chan error, 1)
	go func() {
		_, err := s.b.api.RunRunbook(ctx, control.RunbookRequest{File: "shop.yml", Text: s.runbook(), Mode: mode, At: "latest", Operator: "tester"}, func(control.Progress) {})
		over <- err
	}()
	var run control.RunbookRun
	s.b.until("the run has begun", func(ctx context.Context) bool {
		runs, err := s.b.api.Runs(ctx)
		i := slices.IndexFunc(runs, func(r control.RunbookRun) bool { return r.Mode == mode && r.Ended.IsZero() })
		if err == nil && i >= 0 {
			run = runs[i]
		}
		return err == nil && i >= 0
	})
	done := func(ctx context.Context) (n int, in string) {
		r, err := s.b.api.RunDetail(ctx, run.Run)
		for _, st := range r.Steps {
			if st.State == "done" {
				n++
			} else if in == "" {
				in = st.Name
			}
		}
		if err != nil {
			return 0, ""
		}
		return n, in
	}
	for i, more := range deaths {
		from, _ := done(ctx)
		if i == 0 {
			from = 0
		}
		in := ""
		s.b.within(guestPatience, fmt.Sprintf("%d steps more are done", more), func(ctx context.Context) bool {
			n := 0
			n, in = done(ctx)
			return n >= from+more
		})
		s.b.kill()
		if err := <-over; err == nil {
			s.t.Fatalf("the run was over before death %d", i+1)
		}
		s.t.Logf("%s: death %d in or before %q", mode, i+1, in)
		s.b.launch()
		s.b.until("the daemon answers", func(ctx context.Context) bool {
			r, err := s.b.api.RunDetail(ctx, run.Run)
			return err == nil && r.Ended.IsZero()
		})
		between(run.Run)
		go func() { over <- s.resume(ctx, run.Run) }() // at once: its groups are being opened
	}
	if err := <-over; err != nil {
		s.t.Fatal(err)
	}
	run, err := s.b.api.RunDetail(ctx, run.Run)
	if err != nil || run.State != "done" {
		text, _ := json.MarshalIndent(run, "", " ")
		s.t.Fatalf("resumed: %v\n%s", err, text)
	}
	for _, st := range run.Steps {
		s.t.Logf("%s %-40s %s", mode, st.Name, st.State)
	}
	return run
}

func (s *shop) resume(ctx context.Context, run string) error {
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "--config", s.b.config, "-o", "json", "runbook", "resume", run)
	cmd.Stderr = &said
	if out, err := cmd.Output(); err != nil {
		return fmt.Errorf("resume %s: %w\n%s%s", run, err, &said, out)
	}
	return nil
}

// surroundings are what a drill at b must leave as it was.
func (s *shop) surroundings() map[string]string {
	s.t.Helper()
	links, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(links)) {
		if f := strings.Fields(line); len(f) > 1 {
			names = append(names, f[1])
		}
	}
	slices.Sort(names)
	left, err := filepath.Glob(s.to.Path("s/d-*"))
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[string]string{"links": strings.Join(names, " "), "drills' files": strings.Join(left, " ")}
	for name, args := range map[string][]string{"domains": {"list", "--all", "--name"}, "networks": {"net-list", "--all", "--name"}} {
		for site, d := range map[string]*libvirtd.Daemon{"a": s.from, "b": s.to} {
			lines := strings.Fields(s.virsh(d, args...))
			slices.Sort(lines)
			out[name+" at "+site] = strings.Join(lines, " ")
		}
	}
	for _, g := range shopMachines {
		d, err := s.b.api.Group(s.t.Context(), g)
		if err != nil {
			s.t.Fatal(err)
		}
		views, err := s.b.api.Views(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		out["group "+g] = fmt.Sprintf("%s, epoch %d %s, %d branches, %d views, state %s", d.Role, d.Epoch, d.EpochID, len(d.Branches), len(views), d.State)
	}
	return out
}

// cursors watches how far b has each group, as a was told, and how old that is.
type cursors struct {
	mu     sync.Mutex // guards what follows
	at     map[string]uint64
	oldest map[string]float64 // RPO, seconds
	back   []string           // cursors that went back
	seen   int
}

// watch looks until stop is called.
func (s *shop) watch() (c *cursors, stop func()) {
	c = &cursors{at: map[string]uint64{}, oldest: map[string]float64{}}
	ctx, cancel := context.WithCancel(s.t.Context())
	var work sync.WaitGroup
	work.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			for _, g := range shopMachines {
				if d, err := s.a.api.Group(ctx, g); err == nil {
					c.note(g, d)
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	return c, func() {
		cancel()
		work.Wait()
	}
}

func (c *cursors) note(name string, d control.GroupDetail) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range d.Lags {
		if l.Direction != "out" || l.RPOSeconds == nil {
			continue
		}
		if l.Durable < c.at[name] {
			c.back = append(c.back, fmt.Sprintf("%s from %d to %d", name, c.at[name], l.Durable))
		}
		c.at[name], c.oldest[name] = l.Durable, max(c.oldest[name], *l.RPOSeconds)
		c.seen++
	}
}

func (c *cursors) of(name string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at[name]
}

// went holds that every cursor went on beyond where it was, and none back.
func (s *shop) went(c *cursors, from map[string]uint64, what string) {
	s.t.Helper()
	for _, g := range shopMachines {
		s.a.until("the cursor of "+g+" goes on", func(context.Context) bool { return c.of(g) > from[g] })
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.t.Logf("%s: %d looks, cursors %v from %v, oldest copy in seconds %v", what, c.seen, c.at, from, c.oldest)
	if len(c.back) > 0 {
		s.t.Errorf("%s: cursors went back: %v", what, c.back)
	}
}

// Three machines of libvirt write all the time. A drill leaves domains, networks, files,
// roles and cursors as they were, and so does one whose daemon is killed twice; a move
// whose daemon is killed in three of its steps ends as one that nobody disturbed, while
// the guests that run at b by then have only paused.
func TestRunsOutliveKillsOverMachinesOfLibvirt(t *testing.T) {
	s := newShop(t)
	s.b.launch()
	s.a.launch()
	s.all(s.a, control.StateSynced)
	for _, c := range s.consoles {
		if _, err := c.WaitStamped(t.Context(), 20); err != nil {
			t.Fatal(err)
		}
	}
	s.all(s.b, control.StateReceiving)
	before := s.surroundings()
	same := func(what string) {
		t.Helper()
		s.all(s.b, control.StateReceiving)
		after := s.surroundings()
		for name, was := range before {
			if after[name] != was {
				t.Errorf("%s: %s: before %q, after %q", what, name, was, after[name])
			}
		}
	}

	c, stop := s.watch()
	from := map[string]uint64{}
	for _, g := range shopMachines {
		s.a.until("a cursor", func(context.Context) bool { from[g] = c.of(g); return from[g] > 0 })
	}
	s.ordered("test", "latest")
	same("drill")
	s.went(c, from, "drill")
	for g, oldest := range c.oldest {
		if oldest > drillRPO.Seconds() {
			t.Errorf("during the drill b's copy of %s was %.1f s old", g, oldest)
		}
	}
	stop()

	c, stop = s.watch()
	for _, g := range shopMachines {
		s.a.until("a cursor", func(context.Context) bool { from[g] = c.of(g); return from[g] > 0 })
	}
	deaths := 0
	s.killed("test", []int{1, 3}, func(string) { // what a dead drill has left is gone before anybody asks
		deaths++
		same(fmt.Sprintf("drill after death %d", deaths))
	})
	same("killed drill")
	s.went(c, from, "killed drill")
	stop()

	s.killed("planned", []int{1, 2, 5}, func(string) { deaths++ })
	s.runsAt("b")
	for _, name := range shopMachines {
		s.nothingLost("planned", name, s.consoles[name].Stamped(), s.found(name))
		if n := bytes.Count(s.said(name), []byte("verified ")); n < 1 {
			t.Errorf("%s booted %d times at b", name, n)
		}
	}
	s.writesOnAtB(15)
	scale.Counted(t, "kill9-runs", deaths, 5)
}

// drillRPO is what b's copy may be old at most beside a drill of three machines on two
// processors, which boot three guests at once.
const drillRPO = 20 * time.Second
