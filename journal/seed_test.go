package journal

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/testbed/scale"
)

func seedOf(t *testing.T, j *Journal) ([]byte, Seed) {
	t.Helper()
	var b bytes.Buffer
	s, err := j.ExportSeed(soon(t), &b, Seed{Tenant: "default", Group: "web", Site: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Bytes != int64(b.Len()) {
		t.Fatalf("%d bytes told of %d", s.Bytes, b.Len())
	}
	return b.Bytes(), s
}

// A journal that took a seed in is where the source was, reads the same, without the
// key if it has none, and goes on with frames, or a delta where those are gone.
func TestSeedBeginsAReplica(t *testing.T) {
	for _, form := range forms {
		for _, gone := range []bool{false, true} {
			f, _ := faultFolding(t, faults{})
			f.j.close()
			ring := ringOf(t, "acme-1")
			if f.o.Compress = form.compress; form.sealed {
				f.o.Keys = ring
			}
			f.open()
			for k := range 4 {
				f.put(int64(k)*4096, byte(k+1), 64<<10)
			}
			f.put(4096+512, 9, 2048)
			if err := f.age(); err != nil {
				t.Fatal(err)
			}
			f.put(64<<10, 5, 4096)
			if err := f.w.WaitDurable(soon(t)); err != nil {
				t.Fatal(err)
			}
			b, s := seedOf(t, f.j.Journal)
			p := newFollower(f, "p", vfs.NewMem())
			told, err := p.to.ImportSeed(soon(t), bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatalf("%s: %v", form.name, err)
			}
			if told.To != s.To || told.Group != "web" || p.to.Head().Durable != s.To || s.To != f.j.Head().Durable {
				t.Errorf("%s: the seed leads to %v, told %v, the journal stands at %v", form.name, s.To, told.To, p.to.Head().Durable)
			}
			f.put(8192, 77, 4096)
			if gone {
				err = f.age()
				f.put(8192, 78, 4096)
			}
			if err := errors.Join(err, f.w.WaitDurable(soon(t)), p.follow()); err != nil {
				t.Fatalf("%s: going on: %v", form.name, err)
			}
			var no *KeyError
			if err := p.check(); form.sealed != errors.As(err, &no) || !form.sealed && err != nil {
				t.Errorf("%s: without a key: %v", form.name, err)
			}
			p.o.Keys = ring
			p.reopen(gone)
			if err := p.check(); err != nil {
				t.Errorf("%s: %v", form.name, err)
			}
			p.to.close()
			f.j.close()
		}
	}
}

// What is no seed, another group's, cut or damaged anywhere, or too late, is refused by
// name before the journal is touched.
func TestOtherSeedsAreRefused(t *testing.T) {
	f, p, w := deltaFolding(t, faults{})
	defer func() { p.to.close(); f.j.close() }()
	whole, _ := seedOf(t, f.j.Journal)
	before, err := w.fs.List("p/runs")
	if err != nil {
		t.Fatal(err)
	}
	try := func(b []byte, want error, what string, at int) {
		t.Helper()
		if _, err := p.to.ImportSeed(soon(t), bytes.NewReader(b), int64(len(b))); !errors.Is(err, want) {
			t.Fatalf("%s %d: %v, want %v", what, at, err, want)
		}
		if h := p.to.Head(); !h.IsZero() {
			t.Fatalf("%s %d: the journal stands at %v", what, at, h.Position)
		}
	}
	try(nil, ErrSeed, "nothing", 0)
	try([]byte("nor is this one, for certain"), ErrSeed, "no seed", 0)
	_, head, err := readSeedHead(bytes.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	step := max(len(whole)/200, 1)
	for at := range len(whole) {
		if at > int(head) && at < len(whole)-seedTail && at%step != 0 {
			continue
		}
		try(whole[:at], ErrSeed, "cut after byte", at)
		b := bytes.Clone(whole)
		b[at] ^= 1 << (at % 8)
		if at == 6 || at == 7 { // the version
			try(b, ErrIncompatible, "flipped in byte", at)
			continue
		}
		try(b, ErrSeed, "flipped in byte", at)
	}
	try(append(bytes.Clone(whole), 0), ErrSeed, "longer by bytes", 1)
	other := newFollower(&folding{t: t, o: Options{Create: newIdentity(), SegmentBytes: f.o.SegmentBytes}, clock: f.clock}, "o", vfs.NewMem())
	defer other.to.close()
	if _, err := other.to.ImportSeed(soon(t), bytes.NewReader(whole), int64(len(whole))); !errors.Is(err, ErrWrongJournal) {
		t.Errorf("of another group: %v", err)
	}
	if after, err := w.fs.List("p/runs"); err != nil || len(after) != len(before) {
		t.Errorf("files that are left: %v, %v", after, err)
	}
	if _, err := f.j.ImportSeed(soon(t), bytes.NewReader(whole), int64(len(whole))); !errors.Is(err, ErrHistory) {
		t.Errorf("at the source: %v", err)
	}
	if _, err := p.to.ImportSeed(soon(t), bytes.NewReader(whole), int64(len(whole))); err != nil {
		t.Fatal(err)
	}
	if _, err := p.to.ImportSeed(soon(t), bytes.NewReader(whole), int64(len(whole))); !errors.Is(err, ErrHistory) {
		t.Errorf("a second time: %v", err)
	}
	if err := errors.Join(p.follow(), p.check()); err != nil {
		t.Error(err)
	}
}

// A file that changes after it was checked, or cannot be read on, leaves nothing behind.
func TestSeedThatChangesIsRefused(t *testing.T) {
	f, p, _ := deltaFolding(t, faults{})
	defer func() { p.to.close(); f.j.close() }()
	whole, _ := seedOf(t, f.j.Journal)
	for name, r := range map[string]*changing{
		"another byte": {b: whole, from: int64(len(whole)) / 2, xor: 1},
		"an error":     {b: whole, from: int64(len(whole)) / 2, err: errors.New("the disk is gone")},
	} {
		if _, err := p.to.ImportSeed(soon(t), r, int64(len(whole))); err == nil {
			t.Errorf("%s: taken in", name)
		}
		if h := p.to.Head(); !h.IsZero() {
			t.Errorf("%s: the journal stands at %v", name, h.Position)
		}
	}
	if _, err := p.to.ImportSeed(soon(t), bytes.NewReader(whole), int64(len(whole))); err != nil {
		t.Error(err)
	}
}

// changing gives other bytes from an offset on once all was read.
type changing struct {
	b     []byte
	from  int64
	xor   byte
	err   error
	whole bool
}

func (c *changing) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(c.b).ReadAt(p, off)
	if c.whole && off+int64(n) > c.from {
		if c.err != nil {
			return 0, c.err
		}
		p[n-1] ^= c.xor
	}
	if off+int64(n) == int64(len(c.b))-seedTail+8 {
		c.whole = true
	}
	return n, err
}

// A crash anywhere leaves the journal empty, or behind the seed.
func TestSeedCrashesEverywhere(t *testing.T) {
	f, p, w := deltaFolding(t, faults{})
	whole, s := seedOf(t, f.j.Journal)
	f.put(0, 200, 4096) // frames that follow
	if err := f.w.WaitDurable(soon(t)); err != nil {
		t.Fatal(err)
	}
	c := &deltaCrasher{follower: p, after: s.To}
	var mu sync.Mutex // guards clones and ops
	var clones []*vfs.MemFS
	percent, ops := []int{0, 50, 100}, 0
	w.onWrite(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if ops++; !inIndex(op) || ops%2 == 0 {
			clones = append(clones, w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent[len(clones)%3], RNG: crashRand()}))
		}
		return nil
	})
	if _, err := p.to.ImportSeed(soon(t), bytes.NewReader(whole), int64(len(whole))); err != nil {
		t.Fatal(err)
	}
	w.onWrite(nil)
	mu.Lock() // one that is under way still
	clones = append(clones, w.mem.CrashClone(vfs.CrashCloneCfg{RNG: crashRand()}))
	left := clones
	mu.Unlock()
	for i, mem := range left {
		if err := c.check(mem); err != nil {
			t.Fatalf("crash %d of %d: %v", i, len(left), err)
		}
	}
	t.Logf("%d crashes left it empty, %d behind the seed", c.ops[0], c.ops[1])
	if c.ops[0] == 0 || c.ops[1] == 0 {
		t.Error("one of the two never came")
	}
	scale.Counted(t, "journal-seed-crashes", len(left), 6)
	p.to.close()
	f.j.close()
}

// FuzzSeed: what is read of a seed is within it, and takes no memory for what it claims.
func FuzzSeed(f *testing.F) {
	rng := rand.New(rand.NewPCG(6, 6))
	s := Seed{Identity: *newIdentity(), Tenant: "default", Group: "web", Site: "a", To: Cursor{Position{EpochID{1}, 7}, Chain{2}}}
	head, err := s.head()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(head)
	for range 60 {
		b := append(bytes.Clone(head), make([]byte, rng.IntN(200))...)
		b[rng.IntN(len(b))] ^= byte(rng.Uint32())
		f.Add(b[:rng.IntN(len(b)+1)])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, n, err := readSeedHead(bytes.NewReader(b)); err == nil && (n > int64(len(b)) || s.To.IsZero()) {
			t.Fatalf("a head of %d bytes in %d: %+v", n, len(b), s)
		}
		s, delta, err := checkSeed(t.Context(), bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		if n, err := io.Copy(io.Discard, delta); err != nil || n+seedTail >= int64(len(b)) || s.Bytes != int64(len(b)) {
			t.Fatalf("a delta of %d bytes in %d: %v", n, len(b), err)
		}
	})
}
