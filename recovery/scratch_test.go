package recovery

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd/nbdtest"
	"github.com/novacron/afterimage/testbed/scale"
)

// checkStatus holds an answer to what the disk reads as.
func checkStatus(t *testing.T, s *Scratch, e cbt.Extent, content []byte) {
	t.Helper()
	pieces, err := s.Status(testContext(t), e)
	must(t, err)
	at := e.Offset
	for _, p := range pieces {
		if p.Length <= 0 || at+p.Length > e.End() {
			t.Fatalf("status of %v: piece of %d bytes at %d", e, p.Length, at)
		}
		if p.Zero && len(bytes.Trim(content[at:at+p.Length], "\x00")) > 0 {
			t.Fatalf("status of %v calls [%d,+%d) zero", e, at, p.Length)
		}
		at += p.Length
	}
	if at == e.Offset {
		t.Fatalf("status of %v tells nothing", e)
	}
}

// A scratch disk reads as a plain array that got the same changes, and the base
// keeps what it held.
func TestScratchMatchesModel(t *testing.T) {
	rng := seeded(t)
	ctx := testContext(t)
	n := 0
	for range scale.Scale(40) {
		size := 1<<20 + int64(rng.IntN(3))*cbt.SectorBytes
		base := nbdtest.NewMemory(size)
		for range 20 {
			must(t, base.WriteAt(ctx, fill(rng, 1+rng.Int64N(60000)), rng.Int64N(size-60000), false))
		}
		before := base.Bytes()
		model := bytes.Clone(before)
		s, err := NewScratch(base, size, t.TempDir())
		must(t, err)
		for range 300 {
			off := rng.Int64N(size)
			length := 1 + rng.Int64N(min(size-off, 1<<uint(rng.IntN(18))))
			e := cbt.Extent{Offset: off, Length: length}
			switch rng.IntN(8) {
			case 0:
				must(t, s.Zero(ctx, e, false, rng.IntN(2) == 0))
				clear(model[off:e.End()])
			case 1:
				must(t, s.Trim(ctx, e, false))
				first, end := (off+4095)/4096*4096, e.End()/4096*4096
				if e.End() == size {
					end = size
				}
				if first < end {
					clear(model[first:end])
				}
			case 2, 3, 4:
				p := fill(rng, length)
				must(t, s.WriteAt(ctx, p, off, false))
				copy(model[off:], p)
			case 5:
				checkStatus(t, s, e, model)
			default:
				p := make([]byte, length)
				must(t, s.ReadAt(ctx, p, off))
				if !bytes.Equal(p, model[off:e.End()]) {
					t.Fatalf("read of %v differs", e)
				}
			}
			n++
		}
		got := make([]byte, size)
		must(t, s.ReadAt(ctx, got, 0))
		if !bytes.Equal(got, model) || !bytes.Equal(base.Bytes(), before) {
			t.Fatal("the disk or its base differs")
		}
		checkStatus(t, s, cbt.Extent{Length: size}, model)
		must(t, s.Close())
	}
	scale.Counted(t, "recovery-scratch-ops", n, 12000)
}

// Nothing has a name in the directory, and after Close nothing is left.
func TestScratchLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s, err := NewScratch(nbdtest.NewMemory(1<<20), 1<<20, dir)
	must(t, err)
	must(t, s.WriteAt(context.Background(), []byte("x"), 7, true))
	for range 2 {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Fatalf("left %v, %v", left, err)
		}
		_ = s.Close()
	}
}

// The map of a disk costs what was written to, not what the disk could hold.
func TestCellMapIsLazy(t *testing.T) {
	const tib = int64(1) << 40
	m := newCellMap(tib)
	m.set(0, 1, cellWritten)
	m.set(tib/cbt.CellBytes-1, tib/cbt.CellBytes, cellZero)
	m.set(chunkCells*5-3, chunkCells*5+7, cellWritten)
	made := 0
	for _, c := range m.chunks {
		if c != nil {
			made++
		}
	}
	if made != 4 {
		t.Errorf("%d chunks were made, want 4", made)
	}
	if s, next := m.run(1, tib/cbt.CellBytes); s != cellBelow || next != chunkCells*5-3 {
		t.Errorf("run of untouched cells: %v up to %d", s, next)
	}
	if s, next := m.run(chunkCells*5-3, tib/cbt.CellBytes); s != cellWritten || next != chunkCells*5+7 {
		t.Errorf("run over a chunk's end: %v up to %d", s, next)
	}
}
