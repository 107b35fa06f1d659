package journal

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// twins is the files of a journal before anything was folded: two sites go on from
// there, each folding by itself.
func twins(t testing.TB, rng *rand.Rand, keys KeyRing) (Options, cbt.Volume, map[string][]byte) {
	t.Helper()
	mem := vfs.NewMem()
	v := volume("a", 4<<20)
	o := Options{FS: mem, Create: newIdentity(), SegmentBytes: 1 << 20, Keys: keys, Compress: CompressAlways}
	j := start(t, "j", o)
	w := beginWith(t, j.Journal, v)
	for i := range 120 {
		sectors := []int64{3, 8, 16, 64, 128, 600}[rng.IntN(6)]
		e := cbt.Extent{Offset: rng.Int64N(v.Size/512-sectors) * 512, Length: sectors * 512}
		if rng.IntN(2) == 0 {
			e.Offset &^= 65535
		}
		if rng.IntN(10) == 0 {
			mustRecord(t, w, cbt.Event{Kind: cbt.EventZero, Volume: v.ID, Extent: e})
			continue
		}
		b := make([]byte, e.Length)
		for k := range b {
			b[k] = byte(i + 1)
			if i%3 > 0 { // does not pack
				b[k] = byte(rng.Uint32())
			}
		}
		mustRecord(t, w, cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: e, Data: b})
	}
	must(t, w.WaitDurable(soon(t)))
	must(t, j.WaitDurable(soon(t), j.Head().Position))
	j.close()
	return o, v, filesUnder(t, mem, "j")
}

func (j *running) fold(t testing.TB) Maintained {
	t.Helper()
	m, err := j.Maintain(soon(t), Maintenance{Retention: Retention{Ladder: []Rung{{Every: time.Nanosecond}}}, FoldBytes: 1})
	must(t, err)
	if m.Runs == 0 {
		t.Fatal("nothing was folded")
	}
	return m
}

// Promise 6: a run that is damaged anywhere but in its tail is put together again as
// it was, from what its own table says and a peer has stored, however the peer folded
// and packed; and what a peer gives that is not the same bytes does not get in.
func TestRunIsRepaired(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	ring := ringOf(t, "acme-1")
	for _, c := range []struct {
		name       string
		keys       KeyRing
		here, peer Compression
		folded     bool
	}{
		{"packed here, frames there", nil, CompressAlways, CompressAlways, false},
		{"packed here, cells there", nil, CompressAlways, CompressOff, true},
		{"cells here, packed there", nil, CompressOff, CompressAlways, true},
		{"sealed", ring, CompressAlways, CompressOff, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, _, files := twins(t, rng, c.keys)
			here, there := o, o
			here.FS, here.Compress = plant(t, files), c.here
			there.FS, there.Compress, there.Keys = plant(t, files), c.peer, nil
			peer := start(t, "j", there)
			defer peer.close()
			if c.folded {
				peer.fold(t)
			}
			j := start(t, "j", here)
			defer j.close()
			j.fold(t)
			whole := filesUnder(t, here.FS, "j/runs")
			frames := func(context.Context, Position) ([]byte, error) { return nil, ErrReclaimed }
			fetched := 0
			for i := 0; i < scale.Scale(80) || fetched == 0 && i < 100; i++ { // some damage is to what the table alone mends
				name := slices.Sorted(maps.Keys(whole))[rng.IntN(len(whole))]
				b := bytes.Clone(whole[name])
				n, _ := parseRunName(path.Base(name))
				f, err := decodeRunPage(b[len(b)-pageBytes:], runFooterMagic)
				must(t, err)
				body := f.Body
				for range 1 + rng.IntN(4) {
					at := rng.Int64N(body)
					clear(b[at:min(body, at+int64(1)<<rng.IntN(18))])
					b[at] = whole[name][at] ^ 0x55 // which is another byte whatever was there
				}
				replaceFile(t, here.FS, name, b)
				j.runs.drop(n)
				found, err := j.Verify(soon(t), nil)
				must(t, err)
				if len(found) == 0 {
					t.Fatalf("case %d: nothing found", i)
				}
				lie := func(ctx context.Context, q Cells) ([]byte, error) {
					b, err := peer.StoredCells(ctx, q)
					if len(b) > 0 {
						b[len(b)/2] ^= 1
					}
					return b, err
				}
				if r, err := j.Repair(soon(t), frames, lie); err != nil || (r.Files > 0 && !bytes.Equal(contentOf(t, here.FS, name), whole[name])) {
					t.Fatalf("case %d: a lie got in: %+v, %v", i, r, err)
				}
				r, err := j.Repair(soon(t), frames, peer.StoredCells)
				if err != nil || len(r.Left) > 0 {
					t.Fatalf("case %d: repair left %+v, refused %v, %v", i, r.Left, r.Refused, err)
				}
				fetched += r.Frames
				if !bytes.Equal(contentOf(t, here.FS, name), whole[name]) {
					t.Fatalf("case %d: the run is another one", i)
				}
				if found, err = j.Verify(soon(t), nil); err != nil || len(found) > 0 {
					t.Fatalf("case %d: after the repair %v, %v", i, found, err)
				}
			}
			if fetched == 0 {
				t.Fatal("nothing was ever fetched")
			}
			t.Logf("%d versions fetched", fetched)
		})
	}
}

// A frame that the peer has folded comes back from what its records stored, where
// header and records here are whole.
func TestFoldedFrameIsRepaired(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	o, v, files := twins(t, rand.New(rand.NewPCG(seed, 4)), nil)
	here, there := o, o
	here.FS, there.FS = plant(t, files), plant(t, files)
	peer, j := start(t, "j", there), start(t, "j", here)
	defer peer.close()
	defer j.close()
	peer.fold(t)
	fetch := func(ctx context.Context, p Position) ([]byte, error) {
		f, err := peer.FrameFor(ctx, p)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(f.Reader)
	}
	mended, nth, stride := 0, 0, 1
	if scale.Race {
		stride = 6
	}
	for name, b := range files {
		n, ok := parseSegmentName(path.Base(name))
		if !ok || !strings.Contains(name, "/segments/") {
			continue
		}
		for at := int64(pageBytes); ; {
			h, meta, err := j.segs.frameAt(n, at)
			if err != nil {
				break
			}
			rs, err := decodeRecords(h, meta)
			must(t, err)
			r := rs[len(rs)-1]
			if nth++; nth%stride == 0 && r.stored > 0 && r.volume == j.volumeOrdinal(v.ID) {
				bad := bytes.Clone(b)
				bad[at+r.payload+int64(r.stored)/2] ^= 4
				replaceFile(t, here.FS, name, bad)
				j.segs.drop(n)
				_, err := j.Verify(soon(t), nil)
				must(t, err)
				out, err := j.Repair(soon(t), fetch, peer.StoredCells)
				must(t, err)
				if len(out.Left) == 0 {
					mended++
				} else if !errors.Is(out.Refused, ErrNoPoint) {
					t.Fatalf("refused for %v", out.Refused)
				}
				if got := contentOf(t, here.FS, name); len(out.Left) == 0 && !bytes.Equal(got[:at+h.Bytes], b[:at+h.Bytes]) {
					t.Fatal("the segment is another one")
				}
				replaceFile(t, here.FS, name, b)
				j.segs.drop(n)
			}
			at += h.Bytes
		}
	}
	if mended == 0 {
		t.Fatal("no frame was mended")
	}
	t.Logf("%d frames mended", mended)
}
