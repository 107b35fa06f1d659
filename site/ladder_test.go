package site

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
	"github.com/novacron/afterimage/testbed/scale"
)

// load is a disk's only writer, and the model of what it wrote: which record holds
// what. It shares nothing with the journal but the seqs.
type load struct {
	*running
	rng    *rand.Rand
	size   int64
	writes []written
}

// written is one write: its bytes come from its seed again.
type written struct {
	seq      uint64
	off, n   int64
	seed     byte
	duration time.Duration
}

// repeated is a sector of each byte: the race detector looks at a copy once, and at a loop
// for every byte.
var repeated = func() (sectors [256][512]byte) {
	for b := range sectors {
		for i := range sectors[b] {
			sectors[b][i] = byte(b)
		}
	}
	return sectors
}()

func (w written) data() []byte {
	p := make([]byte, w.n)
	for off := 0; off < len(p); off += 512 { // never a zero, never one sector like the next
		copy(p[off:], repeated[w.seed+byte(off>>9)*7|1][:])
	}
	return p
}

// writeOnce writes once at random, and notes the seq.
func (l *load) writeOnce() {
	l.t.Helper()
	n := (1 + l.rng.Int64N(32)) * 4096
	x := written{off: l.rng.Int64N((l.size-n)/512) * 512, n: n, seed: byte(l.rng.Uint32())}
	began := time.Now()
	if err := l.device("web/root").WriteAt(context.Background(), x.data(), x.off, false); err != nil {
		l.t.Fatal(err)
	}
	x.duration = time.Since(began)
	x.seq = l.head()
	l.writes = append(l.writes, x)
}

func (l *load) head() uint64 {
	j, release, err := l.groups[0].use()
	if err != nil {
		l.t.Fatal(err)
	}
	defer release()
	return uint64(j.j.Head().Seq)
}

// image is the disk as of seq.
func (l *load) image(seq uint64) []byte {
	img := make([]byte, l.size)
	for _, x := range l.writes {
		if x.seq <= seq {
			copy(img[x.off:], x.data())
		}
	}
	return img
}

// run writes for a while at an even pace.
func (l *load) run(d, pace time.Duration) {
	l.t.Helper()
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for end := time.Now().Add(d); time.Now().Before(end); <-tick.C {
		l.writeOnce()
	}
}

// restores fails unless the point at restores to what the model says of seq.
func (l *load) restores(at string, seq uint64) {
	l.t.Helper()
	file := filepath.Join(l.cfg.Data, "restored")
	if _, err := l.Restore(context.Background(), control.RestoreRequest{Group: "web", At: at, To: file, Format: control.FormatRaw, Overwrite: true}, func(control.Progress) {}); err != nil {
		l.t.Errorf("restore %s: %v", at, err)
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		l.t.Fatal(err)
	}
	if want := l.image(seq); !bytes.Equal(want, got) {
		i := 0
		for i < len(got) && i < len(want) && got[i] == want[i] {
			i++
		}
		l.t.Errorf("restore %s: it differs from what was written, first at %d", at, i)
	}
}

func (l *load) points() control.Points {
	l.t.Helper()
	ps, err := l.Points(context.Background(), control.PointsQuery{Group: "web"})
	if err != nil {
		l.t.Fatal(err)
	}
	return ps
}

// single is the point at seq if it is kept for itself.
func single(ps control.Points, seq uint64) *control.Stretch {
	for i, s := range ps.Kept {
		if s.Points == 1 && s.First.Seq == seq {
			return &ps.Kept[i]
		}
	}
	return nil
}

func (l *load) maintain() control.Maintained {
	l.t.Helper()
	var m control.Maintained
	await(l.t, "the maintenance is ours", func() bool { // the daemon does it by itself as well
		var err error
		m, err = l.Maintain(context.Background(), control.MaintainRequest{Group: "web"}, func(control.Progress) {})
		if err != nil && !fault.Is(err, fault.OperationBusy) {
			l.t.Fatal(err)
		}
		return err == nil
	})
	return m
}

// readView reads a served view to its end.
func (l *load) readView(v control.View) []byte {
	l.t.Helper()
	u, err := url.Parse(v.Exports[0].URI)
	if err != nil {
		l.t.Fatal(err)
	}
	c, err := nbd.Dial(context.Background(), "unix", u.Query().Get("socket"), nbd.DialOptions{Export: strings.TrimPrefix(u.Path, "/")})
	if err != nil {
		l.t.Fatal(err)
	}
	defer c.Close()
	p := make([]byte, l.size)
	for off := int64(0); off < l.size; off += 1 << 20 {
		if err := c.ReadAt(context.Background(), p[off:off+1<<20], off); err != nil {
			l.t.Fatal(err)
		}
	}
	return p
}

const ladderSite = `groups:
- name: web
  role: primary
  quota: %s
  history: %s
  lock: %s
  maintenance: {every: 1s, rate: 1GiB}
  volumes: [{name: root, size: 2MiB, embedded: {image: r.img}}]
`

// A group under load thins as its ladder says; a pinned point and one that a view
// shows stay while they are, and every point that is kept restores to what was
// written.
func TestLadderThinsUnderLoadAndKeepsWhatIsInUse(t *testing.T) {
	scale.Lasting(t, "it writes for as long as a ladder takes")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w, ctx := newWorld(t), context.Background()
	s := w.run(w.configure("a", fmt.Sprintf(ladderSite, "256MiB", "[{every: write, for: 2s}, {every: 1s, for: 1h}]", "0s")))
	s.awaitState("web", control.StateSynced)
	l := &load{running: s, rng: rand.New(rand.NewPCG(seed, 1)), size: 2 << 20}

	l.run(500*time.Millisecond, 2*time.Millisecond)
	pinned := l.head()
	if _, err := s.Pin(ctx, control.PinRequest{Group: "web", Name: "audit", At: "latest", Note: "keep"}); err != nil {
		t.Fatal(err)
	}
	l.run(300*time.Millisecond, 2*time.Millisecond)
	var view control.View
	if err := s.Serve(ctx, control.ServeRequest{Group: "web", At: "latest"}, func(v control.View) { view = v }); err != nil {
		t.Fatal(err)
	}
	viewed := view.Point.Seq
	l.run(300*time.Millisecond, 2*time.Millisecond)
	nobody := l.head() // kept by nothing but "every write"
	l.writeOnce()

	l.run(1500*time.Millisecond, 4*time.Millisecond)
	dry, err := s.Maintain(ctx, control.MaintainRequest{Group: "web", DryRun: true}, func(control.Progress) {})
	if err != nil || !dry.DryRun || len(dry.Kept) == 0 {
		t.Errorf("dry run: %+v, %v", dry, err)
	}
	for _, p := range dry.Gone {
		if dry.Time.Sub(p.Last.Time) < 2*time.Second || p.First.Seq <= pinned && pinned <= p.Last.Seq && p.Points == 1 {
			t.Errorf("a dry run would thin %+v", p)
		}
	}

	thinned := func() bool {
		l.run(500*time.Millisecond, 4*time.Millisecond)
		l.maintain()
		for _, p := range l.points().Kept {
			if p.Points > 1 && p.First.Seq <= nobody {
				return false
			}
		}
		return true
	}
	await(t, "what is older than 2 s is thinned", thinned)
	ps := l.points()
	if p := single(ps, pinned); p == nil || !slices.Contains(p.Reasons, "pin audit") {
		t.Errorf("the pinned point #%d is %+v", pinned, p)
	}
	if p := single(ps, viewed); p == nil || !slices.Contains(p.Reasons, "view") {
		t.Errorf("the point #%d that a view shows is %+v", viewed, p)
	}
	if got := l.readView(view); !bytes.Equal(got, l.image(viewed)) {
		t.Error("the view shows something else than was written")
	}
	kept, slots := 0, map[int64]uint64{}
	for _, p := range ps.Kept {
		if p.Points > 1 {
			continue
		}
		kept++
		l.restores(fmt.Sprintf("#%d.%d", p.First.Epoch, p.First.Seq), p.First.Seq)
		if len(p.Reasons) == 1 && p.Reasons[0] == "every 1s" {
			slot := p.First.Time.Unix()
			if other, twice := slots[slot]; twice {
				t.Errorf("points #%d and #%d are kept for the same second", other, p.First.Seq)
			}
			slots[slot] = p.First.Seq
		}
	}
	if kept < 3 {
		t.Errorf("only %d single points: %+v", kept, ps.Kept)
	}
	l.restores("latest", l.head())
	if single(ps, nobody) == nil {
		_, err := s.Points(ctx, control.PointsQuery{Group: "web", At: fmt.Sprintf("#%d", nobody)})
		if f := fault.Of(err); err == nil || f.Exit() != fault.ExitNotFound || !strings.Contains(f.Advice(), "before it #1.") || !strings.Contains(f.Advice(), "after it #1.") {
			t.Errorf("a thinned point: %v; %v", err, f)
		}
	} else {
		t.Logf("#%d is the last of its second: kept", nobody)
	}

	// What was in use goes once it is not, unless it is the last of its second.
	if err := s.CloseView(ctx, view.ID); err != nil {
		t.Error(err)
	}
	if _, err := s.Unpin(ctx, control.UnpinRequest{Group: "web", Name: "audit"}); err != nil {
		t.Error(err)
	}
	await(t, "what is in use no more goes", func() bool {
		l.run(500*time.Millisecond, 4*time.Millisecond)
		l.maintain()
		ps := l.points()
		for _, seq := range []uint64{pinned, viewed} {
			if p := single(ps, seq); p != nil && !slices.Contains(p.Reasons, "every 1s") {
				return false
			}
		}
		return true
	})

	// All of it survives a restart.
	before := l.points()
	s.stop()
	l.running = w.run(s.cfg)
	l.awaitState("web", control.StateSynced)
	after := l.points()
	for _, p := range before.Kept {
		if p.Points == 1 && single(after, p.First.Seq) == nil {
			t.Errorf("point #%d did not survive the restart", p.First.Seq)
		}
	}
	l.restores("latest", l.head())
	d, err := l.Group(ctx, "web")
	if err != nil || d.Usage.Runs == 0 || d.Usage.Oldest == nil {
		t.Errorf("usage %+v, %v", d.Usage, err)
	}
}

// A quota is kept by thinning; where the lock forbids that a gap opens, the disk
// goes on, and when there is room again so does the history.
func TestTinyQuotaThinsThenGapsThenRecovers(t *testing.T) {
	scale.Lasting(t, "it writes a quota twice over")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := newWorld(t)
	const quota = 64 << 20
	open := fmt.Sprintf(ladderSite, "64MiB", "[{every: write, for: 1s}, {every: 1m, for: 1h}]", "0s") // few whole disks
	s := w.run(w.configure("a", open))
	s.awaitState("web", control.StateSynced)
	l := &load{running: s, rng: rand.New(rand.NewPCG(seed, 2)), size: 2 << 20}
	total := int64(0)
	for total < 2*quota { // thinned as it goes, by the daemon itself
		n := len(l.writes)
		l.run(100*time.Millisecond, 4*time.Millisecond)
		for _, x := range l.writes[n:] {
			total += x.n
		}
		await(t, "there is room for more", func() bool {
			g := l.groupLine("web")
			if g.State != control.StateSynced {
				t.Fatalf("after %d MiB the group is %s: %s", total>>20, g.State, g.Detail)
			}
			if g.JournalBytes < quota*3/4 {
				return true
			}
			l.run(50*time.Millisecond, 25*time.Millisecond) // what is written last is folded when more was
			return false
		})
	}
	if g := l.groupLine("web"); g.JournalBytes > quota {
		t.Errorf("%d MiB are used of a quota of %d MiB", g.JournalBytes>>20, quota>>20)
	}
	l.restores("latest", l.head())
	s.stop()

	locked := strings.Replace(open, "lock: 0s", "lock: 1h", 1)
	l.running = w.run(w.configure("a", locked))
	l.awaitState("web", control.StateSynced)
	for range 250 {
		if l.groupLine("web").State == control.StateGap {
			break
		}
		for range 16 {
			l.writeOnce()
		}
	}
	l.awaitState("web", control.StateGap)
	if g := l.groupLine("web"); len(g.Notices) == 0 {
		t.Error("the quota is used up and nothing is said")
	}
	slowest := time.Duration(0)
	for range 50 {
		stood := scale.Standstill()
		l.writeOnce()
		slowest = max(slowest, l.writes[len(l.writes)-1].duration-stood())
	}
	if slowest > time.Second {
		t.Errorf("a write took %s while the journal was full", slowest)
	}
	l.stop()

	l.running = w.run(w.configure("a", open))
	await(t, "there is room again, and the history goes on", func() bool {
		return l.groupLine("web").State == control.StateSynced
	})
	ps := l.points()
	if len(ps.Gaps) == 0 {
		t.Error("no gap was recorded")
	}
	got := make([]byte, l.size)
	if err := l.device("web/root").ReadAt(context.Background(), got, 0); err != nil || !bytes.Equal(got, l.image(1<<62)) {
		t.Errorf("the disk is not what was written: %v", err)
	}
	l.restores("latest", 1<<62)
}
