package journal

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/novacron/afterimage/cbt"
)

// Promise 1: of several frames under way none is answered, or counts as written,
// before it and all before it are durable. The sync of one that fails answers it and
// all behind it with the failure, and ends the journal.
func TestFlightsLandInOrder(t *testing.T) {
	const large, frames = 600 << 10, maxFlights + 2 // no two share a frame
	w := newWorld(vfs.NewCrashableMem())
	o := Options{FS: w.fs, Create: newIdentity(), Sync: SyncPower}
	j := start(t, "j", o)
	v := volume("a", frames*large)
	wr := beginWith(t, j.Journal, v)
	settled := j.Head().Seq
	must(t, wr.WaitDurable(soon(t)))

	second, release := make(chan struct{}), make(chan struct{})
	var syncs atomic.Int32
	w.onWrite(func(op errorfs.Op) error {
		if !isSync(op) || !inSegment(op) {
			return nil
		}
		switch syncs.Add(1) {
		case 1: // of the record that goes first, alone or not
			return nil
		case 2:
			close(second)
			<-release
			return nil
		}
		return syscall.EIO
	})
	record := func(off int64, data []byte) cbt.Pending {
		p, err := wr.Record(soon(t), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: off, Length: int64(len(data))}, Data: data})
		must(t, err)
		return p
	}
	j.fileMu.Lock()
	first := record(0, bytes.Repeat([]byte{9}, 512))
	until(t, func() bool { j.mu.Lock(); defer j.mu.Unlock(); return len(j.queue) == 0 })
	var ps []cbt.Pending
	for i := range frames {
		ps = append(ps, record(int64(i)*large, bytes.Repeat([]byte{byte(i + 1)}, large)))
	}
	j.fileMu.Unlock()
	must(t, first.Wait(soon(t)))
	<-second
	until(t, func() bool { j.mu.Lock(); defer j.mu.Unlock(); return j.aloft == maxFlights })
	if head := j.Head().Seq; head != settled+1 {
		t.Errorf("the head is at %d while nothing behind %d is durable", head, settled+1)
	}
	for i, p := range ps {
		select {
		case <-p.(pendingRecord).c.done:
			t.Errorf("frame %d was answered before the sync of the first", i)
		default:
		}
	}
	close(release)
	must(t, ps[0].Wait(soon(t)))
	clone := w.mem.CrashClone(vfs.CrashCloneCfg{RNG: crashRand()})
	for i, p := range ps[1:] {
		if err := p.Wait(soon(t)); !errors.Is(err, ErrFailed) {
			t.Errorf("frame %d after the failed sync: %v", i+1, err)
		}
	}
	w.onWrite(nil)
	if err := j.end(); !errors.Is(err, ErrFailed) {
		t.Errorf("the journal ended with %v", err)
	}
	k, err := Open("j", Options{FS: clone})
	must(t, err)
	defer func() { must(t, k.Close()) }()
	got, err := readAs(t, k, k.Head().Position, v)
	if err != nil || k.Head().Seq < settled+2 || !bytes.Equal(got[:large], bytes.Repeat([]byte{1}, large)) {
		t.Errorf("after a crash the head is at %d, want at least %d with its bytes: %v", k.Head().Seq, settled+2, err)
	}
}

// passing is the operating system's files, past which frames may go; it counts them.
type passing struct {
	vfs.FS
	frames atomic.Int64
}

type passingFile struct {
	vfs.File
	fs *passing
}

func (p *passing) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.FS.OpenReadWrite(name, c, o...)
	if err == nil && strings.HasSuffix(name, segmentSuffix) {
		f = passingFile{f, p}
	}
	return f, err
}

func (f passingFile) Passed(int64) { f.fs.frames.Add(1) }

// What the kernel writes and syncs by itself is what was recorded, over several
// segments from the pool; answers, head and a new opening agree on it.
func TestKernelWritesFrames(t *testing.T) {
	const writers, rounds, region = 16, 40, 256 << 10
	fs := &passing{FS: vfs.Default}
	dir := t.TempDir()
	o := Options{FS: fs, Create: newIdentity(), Sync: SyncPower, SegmentBytes: 4 << 20, PoolBytes: 48 << 20, Compress: CompressOff}
	j := start(t, filepath.Join(dir, "j"), o)
	v := volume("a", writers*region)
	wr := beginWith(t, j.Journal, v)
	must(t, j.WaitPool(soon(t)))
	rng := newSeed(t)
	want := make([]byte, v.Size)
	var g sync.WaitGroup
	for k := range writers {
		rng := rand.New(rand.NewPCG(rng.Uint64(), uint64(k)))
		g.Go(func() {
			mine := want[k*region:][:region]
			for range rounds {
				n := (1 + rng.Int64N(128)) * cbt.SectorBytes
				off := rng.Int64N((region-n)/cbt.SectorBytes) * cbt.SectorBytes
				data := noise(rng, int(n))
				p, err := wr.Record(soon(t), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: int64(k)*region + off, Length: n}, Data: data})
				if err == nil {
					err = p.Wait(soon(t))
				}
				if err != nil {
					t.Error(err)
					return
				}
				copy(mine[off:], data)
			}
		})
	}
	g.Wait()
	together(t, wr, v, 8) // a frame of several flies
	for i := range 8 {
		copy(want[i*512:], bytes.Repeat([]byte{byte(i + 1)}, 512))
	}
	head := j.Head().Position
	if got, err := readAs(t, j.Journal, head, v); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read what was not written: %v", err)
	}
	j.close()
	o.Create = nil
	j = start(t, filepath.Join(dir, "j"), o)
	defer j.close()
	if got, err := readAs(t, j.Journal, head, v); err != nil || j.Head().Position != head || !bytes.Equal(got, want) {
		t.Errorf("opened at %s, want %s with its bytes: %v", j.Head().Position, head, err)
	}
	if n := fs.frames.Load(); n == 0 && goesPast(t, dir) {
		t.Error("no frame went past the file")
	} else {
		t.Logf("%d frames", n)
	}
}

// goesPast reports that files in dir take writes past the page cache, and the kernel
// takes writes that nobody waits for.
func goesPast(t *testing.T, dir string) bool {
	f, err := vfs.Default.OpenReadWrite(filepath.Join(dir, "probe"), vfs.WriteCategoryUnspecified)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	var d deepWriter
	defer d.close()
	if !direct(f) {
		return false
	}
	w := d.begin(f, alignedBytes(pageBytes), 0)
	return w != nil && d.wait(w) == nil
}

// Writes that are begun together are waited for in any order; one that the kernel
// does not take in this way is done in the plain one.
func TestDeepWrites(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f, err := vfs.Default.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	past := direct(f)
	var d deepWriter
	defer d.close()
	mem := alignedBytes((maxFlights + 1) * pageBytes)
	for i := range mem {
		mem[i] = byte(i / pageBytes * 7)
	}
	copy(mem[maxFlights*pageBytes:], "crooked")
	for range 50 {
		var ws []*deepWrite
		for i := range maxFlights {
			b, off := mem[i*pageBytes:][:pageBytes], int64(i)*pageBytes
			if i == maxFlights-1 { // it ends in a part of a sector
				b = mem[maxFlights*pageBytes:][:7]
			}
			w := d.begin(f, b, off)
			if w == nil {
				if past {
					t.Log("the kernel takes no write that nobody waits for")
				}
				must(t, errors.Join(writeDirect(f, b, off), f.SyncData()))
				continue
			}
			ws = append(ws, w)
		}
		for i := range ws {
			must(t, d.wait(ws[len(ws)-1-i]))
		}
	}
	got, err := os.ReadFile(name)
	want := append(bytes.Clone(mem[:(maxFlights-1)*pageBytes]), "crooked"...)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file holds %d bytes, %v; want %d others", len(got), err, len(want))
	}
}
