package site

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/site/config"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// moment is a guest, its hooks and a mark, each of which can fail or hang.
type moment struct {
	log   []string
	hangs string
	fails map[string]error
	thaws int // that fail before one works
	still int // file systems that a thaw finds frozen
	since time.Time
	held  time.Duration // for how long the guest was frozen
}

func (m *moment) step(ctx context.Context, name string) error {
	m.log = append(m.log, name)
	if m.hangs == name {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return m.fails[name]
}

func (m *moment) Freeze(ctx context.Context) (int, error) {
	m.since = time.Now()
	return 2, m.step(ctx, "freeze")
}

func (m *moment) Thaw(ctx context.Context) (int, error) {
	if m.thaws--; m.thaws >= 0 {
		return 0, errors.New("not now")
	}
	m.held = time.Since(m.since)
	return m.still, m.step(ctx, "thaw")
}

func (m *moment) quiescence() quiescence {
	bounded := func(name string) func(context.Context) error {
		return func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			return m.step(ctx, name)
		}
	}
	return quiescence{freezer: m, frozen: 5 * time.Second, before: bounded("before"), after: bounded("after"),
		remember: func(frozen bool) error { m.log = append(m.log, fmt.Sprint(frozen)); return nil }}
}

// Whatever fails or hangs, the guest is thawed within its limit and the
// after-hook runs.
func TestQuietMomentAlwaysEnds(t *testing.T) {
	boom := errors.New("boom")
	unanswered := &libvirt.Error{Code: 86} // VIR_ERR_AGENT_UNRESPONSIVE: it may be done yet
	for _, c := range []struct {
		name string
		m    moment
		log  string
		err  error
		held time.Duration
	}{
		{"well", moment{still: 2}, "before true freeze mark thaw false after", nil, 0},
		{"before fails", moment{fails: map[string]error{"before": boom}}, "before after", boom, 0},
		{"before hangs", moment{hangs: "before"}, "before after", context.DeadlineExceeded, 0},
		{"freeze is refused", moment{fails: map[string]error{"freeze": qemu.ErrAgentRefused}}, "before true freeze false after", qemu.ErrAgentRefused, 0},
		{"freeze is refused by libvirtd", moment{fails: map[string]error{"freeze": &libvirt.Error{Code: 55}}}, "before true freeze false after", libvirt.ErrNotRunning, 0}, // VIR_ERR_OPERATION_INVALID
		{"freeze is unanswered", moment{still: 2, fails: map[string]error{"freeze": unanswered}}, "before true freeze thaw false after", unanswered, 0},
		{"freeze breaks off", moment{still: 2, fails: map[string]error{"freeze": boom}}, "before true freeze thaw false after", boom, 0},
		{"freeze hangs", moment{still: 2, hangs: "freeze"}, "before true freeze thaw false after", nil, 5 * time.Second},
		{"mark fails", moment{still: 2, fails: map[string]error{"mark": boom}}, "before true freeze mark thaw false after", boom, 0},
		{"mark hangs", moment{still: 2, hangs: "mark"}, "before true freeze mark thaw false after", nil, 5 * time.Second},
		{"thaw fails at first", moment{still: 2, thaws: 3}, "before true freeze mark thaw false after", nil, 3 * thawPause},
		{"thawed early", moment{}, "before true freeze mark thaw false after", errThawedEarly, 0},
		{"thaw fails for ever", moment{thaws: 1 << 30}, "before true freeze mark after", nil, 0},
		{"after hangs", moment{still: 2, hangs: "after"}, "before true freeze mark thaw false after", context.DeadlineExceeded, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, began := &c.m, time.Now()
				err := m.quiescence().around(t.Context(), func(ctx context.Context) error { return m.step(ctx, "mark") })
				fails := m.hangs != "" || c.err != nil || m.thaws > 3
				if (err != nil) != fails || (c.err != nil && !errors.Is(err, c.err)) {
					t.Errorf("error %v, want %v", err, c.err)
				}
				if got := strings.Join(m.log, " "); got != c.log {
					t.Errorf("%s\nwant %s", got, c.log)
				}
				if m.held != c.held || time.Since(began) > thawPatience+thawAttempt {
					t.Errorf("the guest was frozen for %v, want %v; all took %v", m.held, c.held, time.Since(began))
				}
			})
		})
	}
}

// A caller who leaves does not leave the guest frozen.
func TestQuietMomentOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &moment{still: 2}
		ctx, cancel := context.WithCancel(t.Context())
		err := m.quiescence().around(ctx, func(context.Context) error { cancel(); return ctx.Err() })
		if !errors.Is(err, context.Canceled) || !slices.Contains(m.log, "thaw") || !slices.Contains(m.log, "after") {
			t.Errorf("%v, %v", err, m.log)
		}
	})
}

func TestHookIsCutOff(t *testing.T) {
	g := config.Group{Tenant: "t", Name: "web"}
	ctx := context.Background()
	if err := hook(g, []string{"/bin/sh", "-c", `test "$AFTERIMAGE_GROUP $AFTERIMAGE_MARK" = "t/web m"`}, time.Minute, "m")(ctx); err != nil {
		t.Error(err)
	}
	if err := hook(g, []string{"/bin/sh", "-c", "exec sleep 1000"}, 50*time.Millisecond, "m")(ctx); err == nil || !strings.Contains(err.Error(), "longer than 50ms") {
		t.Errorf("a program that hangs: %v", err)
	}
	if err := hook(g, nil, 0, "m")(ctx); err != nil {
		t.Errorf("no program: %v", err)
	}
}

// Marks of a schedule are application marks, come without being asked for, and a hook
// that fails costs one of them.
func TestScheduledMarks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	once := filepath.Join(w.dir, "once")
	c := w.configure("a", fmt.Sprintf(`groups:
- name: web
  role: primary
  quiesce: {every: 1s, before: [/bin/mkdir, %q]}
  volumes: [{name: root, size: 1MiB, embedded: {image: %q}}]
`, once, filepath.Join(w.dir, "root.img")))
	r := w.run(c)
	marks := func() (n int) {
		ps, err := r.Points(context.Background(), control.PointsQuery{Group: "web"})
		if err != nil {
			return 0 // it is being opened
		}
		for _, p := range ps.Marks {
			if m := p.Marks[0]; !m.App || !strings.HasPrefix(m.Name, "app-") {
				t.Errorf("mark %+v", m)
			}
			n++
		}
		return n
	}
	await(t, "a mark is set", func() bool { return marks() == 1 })
	// The directory is there now, and the hook fails until it has gone again.
	if err := os.Remove(once); err != nil {
		t.Fatal(err)
	}
	await(t, "another mark is set", func() bool { return marks() == 2 })
}

// Without an agent there is no application mark, and nothing stays frozen.
func TestAppMarkNeedsAnAgent(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	w := newDomainWorld(t, config.PassthroughForbidden)
	r := w.start()
	r.awaitState("web", control.StateSynced)
	if _, err := r.Mark(ctx, control.MarkRequest{Group: "web", Name: "app", App: true}); !fault.Is(err, fault.QuiesceTrouble) || !strings.Contains(err.Error(), "agent") {
		t.Errorf("mark without an agent: %v", err)
	}
	if _, err := r.Mark(ctx, control.MarkRequest{Group: "web", Name: "plain"}); err != nil {
		t.Error(err)
	}
	ps, err := r.Points(ctx, control.PointsQuery{Group: "web"})
	if err != nil || len(ps.Marks) != 1 || ps.Marks[0].Marks[0].Name != "plain" {
		t.Errorf("marks %+v, %v", ps.Marks, err)
	}
}
