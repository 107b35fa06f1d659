package site

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// flipIn flips a byte of the first place where needle lies in a site's segments.
func flipIn(t *testing.T, dir string, needle []byte) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "segments", "*.seg"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no segments under %s: %v", dir, err)
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(b, needle); at >= 0 {
			f, err := os.OpenFile(n, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte{^b[at]}, int64(at)); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("what was written is not found")
	return ""
}

// Damage at either end of a session is found, called by its place, spoils the points
// that it touches and no others, and is repaired from the other end.
func TestVerifyRepairsFromThePeer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.runPair(w.pair("", ""))
	a.awaitState("web", control.StateSynced)
	precious := make([]byte, 8192) // that no packing shortens
	if _, err := rand.Read(precious); err != nil {
		t.Fatal(err)
	}
	if err := a.device("web/root").WriteAt(t.Context(), precious, 4096, false); err != nil {
		t.Fatal(err)
	}
	head := a.groupLine("web").Seq
	await(t, "the replica holds it", func() bool { return b.groupLine("web").Durable >= head })
	for name, s := range map[string]*running{"a": a, "b": b} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		told := 0
		r, err := s.Verify(ctx, control.VerifyRequest{Group: "web"}, func(control.Progress) { told++ })
		if err != nil || len(r.Found) > 0 || told == 0 {
			t.Fatalf("%s, undamaged: %+v, %v", name, r, err)
		}
		flipIn(t, s.groups[0].dir, precious[1000:1064])
		if r, err = s.Verify(ctx, control.VerifyRequest{Group: "web"}, func(control.Progress) {}); err != nil || len(r.Left) != 1 || r.Left[0].Volume != "root" || len(r.Invalid) != 1 {
			t.Fatalf("%s, damaged: %+v, %v", name, r, err)
		}
		ps, err := s.Points(ctx, control.PointsQuery{Group: "web"})
		invalid := 0
		for _, k := range ps.Kept {
			if k.Invalid != "" {
				invalid++
			}
		}
		if err != nil || invalid == 0 || invalid == len(ps.Kept) {
			t.Errorf("%s: %d of %d stretches are called invalid: %+v, %v", name, invalid, len(ps.Kept), ps.Kept, err)
		}
		if r, err = s.Verify(ctx, control.VerifyRequest{Group: "web", Repair: true}, func(control.Progress) {}); err != nil || len(r.Found) != 1 || len(r.Left) > 0 || len(r.Repairs) != 1 || r.Repairs[0].Frames != 1 {
			t.Fatalf("%s, repaired: %+v, %v", name, r, err)
		}
		if ps, err = s.Points(ctx, control.PointsQuery{Group: "web"}); err != nil {
			t.Fatal(err)
		}
		for _, k := range ps.Kept {
			if k.Invalid != "" {
				t.Errorf("%s: still invalid: %+v", name, k)
			}
		}
	}
	if _, err := a.Verify(t.Context(), control.VerifyRequest{Group: "web", Repair: true, From: "x"}, func(control.Progress) {}); !fault.Is(err, fault.PeerUnknown) {
		t.Errorf("from a peer that is none: %v", err)
	}
}

// A journal that lost its tail stays shut until a person says so, and only while no
// daemon runs.
func TestRecoverAcceptsALoss(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.configure("a", "groups:\n- {name: web, role: primary, volumes: [{name: root, size: 1MiB, embedded: {image: r.img}}]}\n")
	s := w.run(c)
	s.awaitState("web", control.StateSynced)
	s.write("web/root", 7, 0, 4096)
	if _, err := Recover(c, Options{}, control.RecoverRequest{Group: "web"}); !fault.Is(err, fault.DaemonTwice) {
		t.Errorf("beside a daemon: %v", err)
	}
	s.stop()
	r, err := Recover(c, Options{}, control.RecoverRequest{Group: "web", DryRun: true})
	if err != nil || r.Why != "" || r.Head == 0 {
		t.Fatalf("a whole journal: %+v, %v", r, err)
	}
	whole := r.Head
	names, err := filepath.Glob(filepath.Join(s.groups[0].dir, "segments", "*.seg"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	last := names[len(names)-1]
	if err := os.Remove(last); err != nil {
		t.Fatal(err)
	}
	if r, err = Recover(c, Options{}, control.RecoverRequest{Group: "web", DryRun: true}); err != nil || r.Why == "" {
		t.Fatalf("dry run: %+v, %v", r, err)
	}
	if r, err = Recover(c, Options{}, control.RecoverRequest{Group: "web"}); err != nil || r.Head >= whole {
		t.Fatalf("accepted: %+v, %v", r, err)
	}
	if r, err = Recover(c, Options{}, control.RecoverRequest{Group: "web"}); err != nil || r.Why != "" {
		t.Fatalf("afterwards: %+v, %v", r, err)
	}
}
