package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// Each check holds for the journal and must fail for the one with the fault.
var planted = []struct {
	name  string
	plant faults
	check func(*testing.T, faults) error
}{
	{"reply before the record is safe", faults{replyEarly: true}, answersAreSafe},
	{"send before fdatasync", faults{sendUnsynced: true}, framesAreDurable},
	{"index key without epoch", faults{keyWithoutEpoch: true}, branchesKeepApart},
	{"synced carried over an opening", faults{carrySynced: true}, openingEndsInterval},
	{"checksum checked on the header only", faults{headerOnlyCRC: true}, flippedByteIsNamed},
	{"missing directory fsync", faults{skipDirSync: true}, segmentNamesAreDurable},
	{"nonce from a counter reset at open", faults{resetNonces: true}, noncesAreUnique},
	{"torn tail taken for end in mid-file", faults{tornMidFile: true}, midFileIsNoTail},
	{"trim past a pin", faults{trimPastPin: true}, pinIsKept},
	{"fold drops a version that an open view needs", faults{dropViewed: true}, viewIsKept},
	{"run newer than its point", faults{runPastPoint: true}, runHoldsPoints},
	{"chain not checked across a reclaimed segment", faults{skipReclaimedChain: true}, chainGoesOn},
	{"index rebuilt without its lineage", faults{rebuildWithoutLineage: true}, rebuildKnowsEpochs},
	{"quota counted before fsync", faults{quotaEarly: true}, quotaCountsWhatIsThere},
	{"sector mask ignored", faults{ignoreSectors: true}, sectorsAreApart},
	{"comparison with a point that is gone", faults{diffAtGone: true}, diffListsAll},
	{"delta of older versions", faults{deltaOlder: true}, deltaShowsNewest},
	{"delta taken as it comes", faults{landUnverified: true}, deltaIsVerified},
	{"delta listed before it is durable", faults{landUnsynced: true}, deltaOutlivesCrash},
	{"thinning while it is not known what is pinned", faults{thinUnknown: true}, acceptsSiteLog},
	{"fork given up before a delta", faults{landForgetFork: true}, deltaKeepsFork},
}

func TestPlantedFaults(t *testing.T) {
	t.Parallel()
	for _, p := range planted {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			if err := p.check(t, faults{}); err != nil {
				t.Fatalf("without the fault: %v", err)
			}
			err := p.check(t, p.plant)
			if err == nil {
				t.Fatal("with the fault the check finds nothing")
			}
			t.Logf("caught: %v", err)
		})
	}
	scale.Counted(t, "journal-planted-faults", len(planted), 20)
}

// grace is how long a check waits for what must not come: a moment, and where the
// fault is planted that brings it until it is there.
func grace(f faults) time.Duration {
	if f == (faults{}) {
		return 20 * time.Millisecond
	}
	return time.Minute
}

// Promise 1: a reply comes after the record is written (process) and synced (power).
func answersAreSafe(t *testing.T, f faults) error {
	for _, mode := range []SyncMode{SyncProcess, SyncPower} {
		w := newWorld(vfs.NewCrashableMem())
		id := newIdentity()
		j := start(t, "j", Options{FS: w.fs, Create: id, Sync: mode, faults: f})
		v := volume("a", 1<<20)
		wr := beginWith(t, j.Journal, v)
		answered := make(chan struct{}, 1)
		var mu sync.Mutex // guards early
		var early error
		w.onWrite(func(op errorfs.Op) error {
			unsafe := op.Kind == errorfs.OpFileWriteAt || (mode == SyncPower && isSync(op))
			mu.Lock()
			defer mu.Unlock()
			if inSegment(op) && unsafe && early == nil {
				select {
				case <-answered:
					early = fmt.Errorf("answered before %v of %s", op.Kind, op.Path)
				case <-time.After(grace(f)):
				}
			}
			return nil
		})
		s := put(t, wr, v, 0, bytes.Repeat([]byte{7}, 4096))
		answered <- struct{}{}
		clone := w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: map[SyncMode]int{SyncProcess: 100}[mode], RNG: crashRand()})
		if err := wr.WaitDurable(soon(t)); err != nil {
			return err
		}
		w.onWrite(nil)
		j.close()
		mu.Lock()
		defer mu.Unlock()
		k, err := Open("j", Options{FS: clone})
		if err != nil {
			return err
		}
		head := k.Head().Seq
		if err := k.Close(); err != nil {
			return err
		}
		if early != nil || head < s {
			return fmt.Errorf("record %d was answered, the journal ends at %d: %w", s, head, early)
		}
	}
	return nil
}

// Promise 9: what a stream yields survives the loss of power.
func framesAreDurable(t *testing.T, f faults) error {
	w := newWorld(vfs.NewCrashableMem())
	j := start(t, "j", Options{FS: w.fs, Create: newIdentity(), faults: f})
	v := volume("a", 1<<20)
	wr := beginWith(t, j.Journal, v)
	if err := wr.WaitDurable(soon(t)); err != nil {
		return err
	}
	release := make(chan struct{})
	w.onWrite(func(op errorfs.Op) error {
		if inSegment(op) && isSync(op) {
			<-release
		}
		return nil
	})
	st, err := j.Stream(soon(t), Position{})
	if err != nil {
		return err
	}
	s := put(t, wr, v, 0, make([]byte, 512))
	// In SyncProcess the write is answered, and its sync is held back.
	if err := j.waitFor(soon(t), func() bool { return j.indexed >= s }); err != nil {
		return err
	}
	yielded := make(chan error, 1)
	go func() {
		for {
			fr, err := st.Next(soon(t))
			if err != nil {
				yielded <- err
				return
			}
			if fr.Last.Seq < s {
				continue
			}
			k, err := Open("j", Options{FS: w.mem.CrashClone(vfs.CrashCloneCfg{})})
			if err == nil {
				if head := k.Head().Seq; head < fr.Last.Seq {
					err = fmt.Errorf("record %d was sent, a crash leaves %d", fr.Last.Seq, head)
				}
				err = errors.Join(err, k.Close())
			}
			yielded <- err
			return
		}
	}()
	select {
	case err = <-yielded:
		close(release)
	case <-time.After(grace(f)):
		close(release)
		err = <-yielded
	}
	w.onWrite(nil)
	j.close()
	return err
}

// Two branches that go on from one record keep what each wrote.
func branchesKeepApart(t *testing.T, f faults) error {
	j := start(t, "j", Options{FS: vfs.NewMem(), Create: newIdentity(), faults: f})
	defer j.close()
	v := volume("a", 64<<10)
	w := beginWith(t, j.Journal, v)
	fill := func(w *Writer, b byte) Position {
		return Position{w.epoch.ID, put(t, w, v, 0, bytes.Repeat([]byte{b}, 8192))}
	}
	p := fill(w, 1)
	one := fill(w, 2)
	w2, err := j.BeginEpoch(soon(t), "b", p, 0)
	if err != nil {
		return err
	}
	two := fill(w2, 3)
	for _, c := range []struct {
		at   Position
		want byte
	}{{p, 1}, {one, 2}, {two, 3}, {w2.epoch.firstPosition(), 1}} {
		b, err := readAs(t, j.Journal, c.at, v)
		if err != nil {
			return err
		}
		if b[0] != c.want || b[8191] != c.want {
			return fmt.Errorf("at %s there is %d, want %d", c.at, b[0], c.want)
		}
	}
	return nil
}

func (e Epoch) firstPosition() Position { return Position{e.ID, e.First()} }

// Promise 3: an opening ends every interval.
func openingEndsInterval(t *testing.T, f faults) error {
	o := Options{FS: vfs.NewMem(), Create: newIdentity(), faults: f}
	j := start(t, "j", o)
	v := volume("a", 64<<10)
	w := beginWith(t, j.Journal, v)
	s := put(t, w, v, 0, make([]byte, 512))
	j.close()
	j = start(t, "j", o)
	defer j.close()
	w, err := j.BeginEpoch(soon(t), "a", Position{}, 0)
	if err != nil {
		return err
	}
	put(t, w, v, 0, make([]byte, 512))
	p, err := resolve(t, j.Journal, "latest")
	if err != nil {
		return err
	}
	if p.Seq != s {
		return fmt.Errorf("latest is record %d, the interval ended at %d", p.Seq, s)
	}
	if _, err = resolve(t, j.Journal, fmt.Sprintf("#%d", s+2)); !errors.Is(err, ErrNoPoint) {
		return fmt.Errorf("a record after the opening is a point: %v", err)
	}
	return nil
}

func resolve(t testing.TB, j *Journal, at string) (Point, error) {
	t.Helper()
	a, err := ParseAt(at)
	if err != nil {
		return Point{}, err
	}
	return j.Resolve(soon(t), a)
}

// Promise 6: a flipped byte of a payload is named with volume and seq, wherever it
// is met; other points stay usable.
func flippedByteIsNamed(t *testing.T, f faults) error {
	mem := vfs.NewMem()
	o := Options{FS: mem, Create: newIdentity(), SegmentBytes: 64 << 10, faults: f}
	j := start(t, "j", o)
	a, b := volume("a", 256<<10), volume("b", 256<<10)
	w := beginWith(t, j.Journal, a, b)
	good := put(t, w, a, 0, bytes.Repeat([]byte{1}, 4096))
	bad := put(t, w, b, 8192, bytes.Repeat([]byte{2}, 4096))
	var last Seq
	for i := range 40 { // several segments
		last = put(t, w, a, int64(i+1)*4096, bytes.Repeat([]byte{3}, 4096))
	}
	ep := w.epoch.ID
	at, err := j.frameOf(soon(t), Position{ep, bad})
	if err != nil {
		return err
	}
	payload := at.offset + at.recs[bad-at.h.First].payload
	j.close()
	flip(t, mem, mem.PathJoin("j", "segments", segmentName(at.segment)), payload+1000)
	j = start(t, "j", o)
	defer j.close()
	if _, err := readAs(t, j.Journal, Position{ep, last}, a); err != nil {
		return fmt.Errorf("another volume: %w", err)
	}
	if _, err := readAs(t, j.Journal, Position{ep, good}, b); err != nil {
		return fmt.Errorf("an earlier point: %w", err)
	}
	named := func(err error) error {
		var d *DamageError
		if !errors.As(err, &d) || d.Volume != b.ID || d.Seq != bad || d.Epoch != ep || d.File != segmentName(at.segment) {
			return fmt.Errorf("not named: %v", err)
		}
		return nil
	}
	_, err = readAs(t, j.Journal, Position{ep, last}, b)
	if err := named(err); err != nil {
		return fmt.Errorf("view: %w", err)
	}
	found, err := j.Verify(soon(t), nil)
	if err != nil || len(found) != 1 {
		return fmt.Errorf("verify: %v, %w", found, err)
	}
	if err := named(&found[0]); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	err = j.Replay(soon(t), Position{}, func(Seq, cbt.Event) error { return nil })
	if f.headerOnlyCRC {
		return nil
	}
	return named(err)
}

func flip(t testing.TB, fs vfs.FS, path string, off int64) {
	t.Helper()
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	b[0] ^= 0x10
	if err == nil {
		_, err = f.WriteAt(b, off)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A lost tail must not be taken for a short one: what a peer or a caller was told
// is durable is there after the next opening, power loss included.
func TestRecoveredTailIsDurable(t *testing.T) {
	w := newWorld(vfs.NewCrashableMem())
	id := newIdentity()
	j := start(t, "j", Options{FS: w.fs, Create: id})
	v := volume("a", 64<<10)
	wr := beginWith(t, j.Journal, v)
	if err := wr.WaitDurable(soon(t)); err != nil {
		t.Fatal(err)
	}
	// From here on the kernel writes nothing back.
	w.onWrite(func(op errorfs.Op) error {
		if inSegment(op) && isSync(op) {
			return errorfs.ErrInjected
		}
		return nil
	})
	p, err := wr.Record(soon(t), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Length: 512}, Data: make([]byte, 512)})
	if err != nil {
		t.Fatal(err)
	}
	_ = p.Wait(context.Background())
	if err := j.end(); !errors.Is(err, ErrFailed) {
		t.Fatalf("after a failed fsync Run returned %v", err)
	}
	w.onWrite(nil)
	j2, err := Open("j", Options{FS: w.fs})
	if err != nil {
		t.Fatal(err)
	}
	head := j2.Head()
	clone := w.mem.CrashClone(vfs.CrashCloneCfg{})
	if err := j2.Close(); err != nil {
		t.Fatal(err)
	}
	j3, err := Open("j", Options{FS: clone})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j3.Close() }()
	if got := j3.Head().Seq; got < head.Durable.Seq || head.Durable.Seq != p.(pendingRecord).seq {
		t.Fatalf("opened at %d and called %d durable; a power loss left %d", head.Seq, head.Durable.Seq, got)
	}
}
