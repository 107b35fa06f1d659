package bench

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/scale"
)

// endChild is set in a process of this test that is an end of a path.
const endChild = "AFTERIMAGE_BENCH_END"

func endOfTest(ctx context.Context) *exec.Cmd {
	c := exec.CommandContext(ctx, os.Args[0])
	c.Env = append(os.Environ(), endChild+"=1")
	return c
}

// A run prints every figure that it promises and leaves nothing behind.
func TestReplicatePrintsEveryFigure(t *testing.T) {
	o := ReplicateOptions{Dir: t.TempDir(), Span: 300 * time.Millisecond, Rounds: 1, RTT: 2 * time.Millisecond, LinkRate: 4 << 20, Seed: 5, End: endOfTest, tiny: true}
	if scale.Race { // the ends are other processes, and slow ones: what moves bytes is enough
		o.Only = "loopback"
	}
	res, err := Replicate(t.Context(), o)
	if errors.Is(err, ErrPrivilege) {
		scale.Missing(t, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(res)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", raw)
	var printed map[string]any
	if err := json.Unmarshal(raw, &printed); err != nil {
		t.Fatal(err)
	}
	for _, g := range replicateGoals {
		if !strings.Contains(g.name, o.Only) {
			continue
		}
		v, ok := printed[g.name].(float64)
		// What is measured in bytes that all arrived is not nothing; a short window may be.
		if whole := strings.HasPrefix(g.name, "wire_") || g.name == "cpu_seconds_per_gib"; !ok || v < 0 || whole && v == 0 {
			t.Errorf("%s is printed as %v", g.name, printed[g.name])
		}
	}
	if s := res.Figures["quic_loopback_vs_bare_quic"]; s.Ours == nil || s.Baseline == nil || s.Ours.Bytes == 0 {
		t.Errorf("the loopback compares nothing: %+v", s)
	}
	left, err := os.ReadDir(o.Dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Ends that hold different bytes do not pass for the same.
func TestReplicateComparesItsEnds(t *testing.T) {
	r := &yard{end: endOfTest, dir: t.TempDir()}
	what := newReplicated(4 << 20)
	var ends [2]*site
	for i := range ends {
		s, err := r.newSite(t.Context(), "end", nil, what, EndOpen{Source: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := s.close(); err != nil {
				t.Error(err)
			}
		}()
		ends[i] = s
		var filled int64
		// The same but for what comes last.
		if err := s.call(t.Context(), "Fill", EndFill{Bytes: 8 << 20, Kind: randomKind, Seed: 3}, &filled); err != nil {
			t.Fatal(err)
		}
		if err := s.call(t.Context(), "Fill", EndFill{Bytes: 1 << 20, Kind: databaseKind, Seed: uint64(i)}, &filled); err != nil {
			t.Fatal(err)
		}
	}
	first, err := ends[0].state(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := sameAt(t.Context(), ends[0].child, ends[1].child, first.Base, 1); err != nil {
		t.Errorf("the same bytes differ: %v", err)
	}
	if sameAt(t.Context(), ends[0].child, ends[1].child, first.Head, 1) == nil {
		t.Error("different bytes are the same")
	}
}

func TestWorstWindowIsTheWorst(t *testing.T) {
	const rate = 1000
	begin := time.Now()
	steady := func(seconds int) (s []moved) {
		for i := range seconds * 10 {
			s = append(s, moved{begin.Add(time.Duration(i) * 100 * time.Millisecond), int64(i) * rate / 10})
		}
		return s
	}
	for _, c := range []struct {
		name string
		bend func([]moved)
		want float64
	}{
		{"steady", func([]moved) {}, 0},
		{"a burst of two seconds' worth", func(s []moved) {
			for i := 150; i < len(s); i++ {
				s[i].bytes += 2 * rate
			}
		}, 0.2},
		{"a second of silence", func(s []moved) {
			for i := 150; i < len(s); i++ {
				s[i].bytes -= rate
			}
		}, 0.1},
	} {
		s := steady(30)
		c.bend(s)
		if got, ok := worstWindow(s, 10*time.Second, rate); !ok || got < c.want-1e-9 || got > c.want+1e-9 {
			t.Errorf("%s: %.3f (%v), want %.3f", c.name, got, ok, c.want)
		}
	}
	if _, ok := worstWindow(steady(5), 10*time.Second, rate); ok {
		t.Error("five seconds hold a window of ten")
	}
}
