package journal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// A read gives what was answered before it, whatever way it takes to the disk: each
// of several writers reads its own newest writes back at once, and older ones of
// segments that are sealed, while the others write.
func TestReadsSeeNewestWrites(t *testing.T) {
	t.Parallel()
	for _, mode := range []SyncMode{SyncProcess, SyncPower} {
		t.Run(fmt.Sprint(mode), func(t *testing.T) { newestUnderLoad(t, mode) })
	}
}

func newestUnderLoad(t *testing.T, mode SyncMode) {
	const writers, rounds, region = 8, 60, 256 << 10
	v := volume("a", writers*region)
	j := start(t, t.TempDir(), Options{Create: newIdentity(), Sync: mode, SegmentBytes: 1 << 20})
	defer j.close()
	w := beginWith(t, j.Journal, v)
	var wg sync.WaitGroup
	for k := range writers {
		rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(k)))
		wg.Go(func() {
			want, got := make([]byte, region), make([]byte, region)
			for round := range rounds {
				n := int64(1+rng.IntN(64)) * cbt.SectorBytes
				off := rng.Int64N((region-n)/cbt.SectorBytes) * cbt.SectorBytes
				data := noise(rng, int(n))
				copy(want[off:], data)
				e := cbt.Extent{Offset: int64(k)*region + off, Length: n}
				p, err := w.Record(soon(t), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: e, Data: data})
				if err == nil {
					err = p.Wait(soon(t))
				}
				if err == nil {
					err = w.ReadHead(soon(t), v.ID, int64(k)*region, got)
				}
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("writer %d, round %d, after %v: read what was not written last: %v", k, round, e, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Reads that are queued together give each its own bytes, and end with the file.
func TestDeepReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), segmentName(1))
	const cells = 512
	file := make([]byte, cells*pageBytes)
	for c := range cells {
		binary.LittleEndian.PutUint64(file[c*pageBytes:], uint64(c)+1)
	}
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	j := &Journal{deep: deepReader{depth: deepReads}, segs: newSegments(vfs.Default, filepath.Dir(path), segmentName)}
	defer j.segs.close()
	defer j.deep.close()
	var wg sync.WaitGroup
	for k := range 16 {
		rng := rand.New(rand.NewPCG(uint64(k), 5))
		wg.Go(func() {
			for range 50 {
				rs := make([]fileRead, 1+rng.IntN(2*deepReads))
				for i := range rs {
					rs[i] = fileRead{id: segmentID(1), disk: diskRead{off: rng.Int64N(cells+1) * pageBytes, buf: alignedBytes(pageBytes)}}
				}
				j.readPages(&j.deep, rs, nil)
				for _, r := range rs {
					c := uint64(r.disk.off / pageBytes)
					switch got := binary.LittleEndian.Uint64(r.disk.buf); {
					case r.disk.err != nil, c < cells && (r.disk.got != pageBytes || got != c+1), c == cells && r.disk.got != 0:
						t.Errorf("cell %d: %d bytes of cell %d, %v", c, r.disk.got, got, r.disk.err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if !j.deep.refused && j.deep.context == 0 {
		t.Error("no read was deep")
	}
}
