package journal

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/cbt"
)

// full is a world whose segments take no more while on.
type full struct {
	*world
	mu sync.Mutex
	on bool
}

func newFull() *full {
	f := &full{world: newWorld(vfs.NewCrashableMem())}
	f.onWrite(func(op errorfs.Op) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.on && inSegment(op) && (op.Kind == errorfs.OpFileWriteAt || op.Kind == errorfs.OpFilePreallocate) {
			return syscall.ENOSPC
		}
		return nil
	})
	return f
}

func (f *full) set(on bool) { f.mu.Lock(); defer f.mu.Unlock(); f.on = on }

func write512(v cbt.Volume) cbt.Event {
	return cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Length: 512}, Data: bytes.Repeat([]byte{7}, 512)}
}

// A full disk refuses what is under way at once, stalls nobody, opens a gap as soon
// as there is room, and what was refused is nowhere: not its volume, not its epoch.
func TestDiskFull(t *testing.T) {
	f := newFull()
	j := start(t, "j", Options{FS: f.fs, Create: newIdentity()})
	a, b := volume("a", 64<<10), volume("b", 64<<10)
	w := beginWith(t, j.Journal, a)
	good := put(t, w, a, 4096, bytes.Repeat([]byte{1}, 512))
	if err := w.WaitDurable(soon(t)); err != nil {
		t.Fatal(err)
	}
	f.set(true)
	var ps []cbt.Pending
	for range 40 {
		p, err := w.Record(soon(t), write512(a))
		if errors.Is(err, ErrFull) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	if err := w.WaitDurable(soon(t)); err != nil && !errors.Is(err, ErrFull) {
		t.Fatalf("a flush while the disk is full: %v", err)
	}
	for _, p := range ps {
		if err := p.Wait(soon(t)); !errors.Is(err, ErrFull) || !errors.Is(err, cbt.ErrDiskFull) {
			t.Fatalf("a write to a full disk: %v", err)
		}
	}
	for range 2 { // once refused, the volume is still unknown
		if err := w.AddVolume(soon(t), b); !errors.Is(err, ErrFull) {
			t.Fatalf("a volume added to a full disk: %v", err)
		}
	}
	if _, err := w.Record(soon(t), write512(b)); !errors.Is(err, ErrUnknownVolume) {
		t.Fatalf("a write to a volume that was refused: %v", err)
	}
	if j.pending != 0 {
		t.Fatalf("%d bytes are pending, nothing is queued", j.pending)
	}
	before := j.Head().Position
	if _, err := j.BeginEpoch(soon(t), "a", Position{}, 0); !errors.Is(err, ErrFull) {
		t.Fatalf("an epoch begun on a full disk: %v", err)
	}
	if n := len(j.Branches()); n != 1 || j.Head().Position != before {
		t.Fatalf("%d branches, head %s, want 1, %s", n, j.Head().Position, before)
	}
	f.set(false)
	w, err := j.BeginEpoch(soon(t), "a", Position{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	mustRecord(t, w, cbt.Event{Kind: cbt.EventSynced, Volume: a.ID})
	synced := put(t, w, a, 0, bytes.Repeat([]byte{2}, 512))
	f.set(true)
	p, err := w.Record(soon(t), write512(a))
	if err == nil {
		err = p.Wait(soon(t))
	}
	if !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	f.set(false)
	put(t, w, a, 0, bytes.Repeat([]byte{3}, 512)) // the gap goes before it
	spans, err := j.Spans(soon(t))
	if err != nil || len(spans) != 2 || spans[1].Open || spans[1].Ended != cbt.CauseDiskFull || spans[1].Last.Seq != synced {
		t.Fatalf("spans %+v, %v", spans, err)
	}
	if got, err := readAs(t, j.Journal, Position{before.Epoch, good}, a); err != nil || got[4096] != 1 || got[0] != 0 {
		t.Fatalf("the last good point reads %d, %d: %v", got[4096], got[0], err)
	}
	head := j.Head().Position
	j.close()
	j = start(t, "j", Options{FS: f.fs})
	defer j.close()
	if j.Head().Position != head {
		t.Fatalf("opened at %s, want %s", j.Head().Position, head)
	}
}

// A quota refuses payload, records the gap at once, and takes no more gaps than one.
func TestQuota(t *testing.T) {
	j := start(t, "j", Options{FS: vfs.NewMem(), Create: newIdentity(), QuotaBytes: 200 << 10})
	defer j.close()
	v := volume("a", 1<<20)
	w := beginWith(t, j.Journal, v)
	refused := 0
	for i := range 100 {
		p, err := w.Record(soon(t), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: int64(i) * 4096, Length: 4096}, Data: bytes.Repeat([]byte{1}, 4096)})
		if err == nil {
			err = p.Wait(soon(t))
		}
		if err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		if err != nil {
			refused++
		}
	}
	if err := w.WaitDurable(soon(t)); err != nil {
		t.Fatal(err)
	}
	hs, err := j.Happenings(soon(t), time.Time{}, time.Time{})
	gaps := 0
	for _, h := range hs {
		if h.Kind == KindGap && h.Cause == cbt.CauseDiskFull {
			gaps++
		}
	}
	if err != nil || refused < 40 || gaps != 1 || j.Head().Bytes > 220<<10 {
		t.Fatalf("%d refused, %d gaps, %d bytes: %v", refused, gaps, j.Head().Bytes, err)
	}
}

// Records whose bodies are large never make a frame that cannot be read.
func TestLargeBodies(t *testing.T) {
	o := Options{FS: vfs.NewMem(), Create: newIdentity()}
	j := start(t, "j", o)
	v := volume("a", 64<<10)
	w := beginWith(t, j.Journal, v)
	definition := []byte(strings.Repeat("<disk/>", 100_000))
	j.fileMu.Lock()
	var g sync.WaitGroup
	for range 16 {
		g.Go(func() {
			if err := w.Machine(soon(t), "web", definition); err != nil {
				t.Error(err)
			}
		})
	}
	until(t, func() bool { j.mu.Lock(); defer j.mu.Unlock(); return j.next >= 4+16 })
	gap, err := w.Record(soon(t), cbt.Event{Kind: cbt.EventGap, Volume: v.ID, Cause: cbt.CauseStall, Detail: strings.Repeat("é", 2<<20)})
	j.fileMu.Unlock()
	if err == nil {
		err = gap.Wait(soon(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	g.Wait()
	head := j.Head().Position
	_ = j.fail(errors.New("killed"))
	_ = j.end()
	j = start(t, "j", o)
	defer j.close()
	if j.Head().Position != head {
		t.Fatalf("opened at %s, want %s", j.Head().Position, head)
	}
	ms, err := j.Machines(Point{Position: head})
	if err != nil || !bytes.Equal(ms["web"], definition) {
		t.Fatalf("the definition has %d bytes: %v", len(ms["web"]), err)
	}
}

// Whoever waits is answered when the journal fails or ends, in both modes.
func TestNobodyWaitsForEver(t *testing.T) {
	for _, mode := range []SyncMode{SyncProcess, SyncPower} {
		for _, how := range []string{"ends", "fails"} {
			w := newWorld(vfs.NewCrashableMem())
			j := start(t, "j", Options{FS: w.fs, Create: newIdentity(), Sync: mode})
			v := volume("a", 64<<10)
			wr := beginWith(t, j.Journal, v)
			if err := wr.WaitDurable(soon(t)); err != nil {
				t.Fatal(err)
			}
			if how == "fails" {
				w.onWrite(func(op errorfs.Op) error {
					if inSegment(op) && isSync(op) {
						return errorfs.ErrInjected
					}
					return nil
				})
			}
			var g sync.WaitGroup
			for range 4 {
				g.Go(func() {
					for {
						p, err := recordInTurn(soon(t), wr, write512(v))
						if err == nil {
							err = p.Wait(soon(t))
						}
						if err == nil {
							err = wr.WaitDurable(soon(t))
						}
						if errors.Is(err, context.DeadlineExceeded) {
							t.Errorf("mode %d, the journal %s: somebody waits for ever", mode, how)
						}
						if err != nil {
							return
						}
					}
				})
			}
			g.Go(func() {
				_, err := j.BeginEpoch(soon(t), "a", Position{EpochID{1}, 1}, 0)
				for err == nil || errors.Is(err, ErrUnknownParent) {
					_, err = j.BeginEpoch(soon(t), "a", Position{}, 0)
				}
				if errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("mode %d, the journal %s: BeginEpoch waits for ever", mode, how)
				}
			})
			if how == "ends" {
				if err := j.waitFor(soon(t), func() bool { return j.written > 20 || len(j.branches) > 3 }); err != nil {
					t.Fatal(err)
				}
			} else {
				g.Wait()
			}
			err := j.end()
			g.Wait()
			if (how == "fails") != errors.Is(err, ErrFailed) {
				t.Fatalf("mode %d, the journal %s: %v", mode, how, err)
			}
		}
	}
}
