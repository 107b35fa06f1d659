package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/testbed/scale"
)

// A key that is missing or wrong says so, names itself, and is never damage: in a
// view, in a replay, and when a new epoch is to begin.
func TestWrongAndMissingKey(t *testing.T) {
	o := Options{FS: vfs.NewMem(), Create: newIdentity(), Keys: ringOf(t, "acme-1")}
	j := start(t, "j", o)
	v := volume("a", 64<<10)
	w := beginWith(t, j.Journal, v)
	s := put(t, w, v, 0, bytes.Repeat([]byte{7}, 8192))
	at := Position{w.epoch.ID, s}
	j.close()
	wrong, other := new(Keys), ringOf(t, "other")
	if err := wrong.Add("acme-1", bytes.Repeat([]byte{9}, dataKeyBytes)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		keys  KeyRing
		want  error
		begin error // BeginEpoch; a group goes on under any key of a ring
	}{{"none", nil, ErrNoKey, ErrNoKey}, {"another name", other, ErrNoKey, nil}, {"another key", wrong, ErrWrongKey, nil}, {"an empty ring", new(Keys), ErrNoKey, ErrNoKey}} {
		k := start(t, "j", Options{FS: o.FS, Keys: c.keys})
		_, err := readAs(t, k.Journal, at, v)
		replay := k.Replay(soon(t), Position{}, func(Seq, cbt.Event) error { return nil })
		for what, err := range map[string]error{"view": err, "replay": replay} {
			var damage *DamageError
			var key *KeyError
			if !errors.Is(err, c.want) || errors.As(err, &damage) || !errors.As(err, &key) || key.Key != "acme-1" || key.Tenant != o.Create.Tenant {
				t.Errorf("%s, %s: %v", c.name, what, err)
			}
		}
		if found, err := k.Verify(soon(t), nil); err != nil || len(found) > 0 {
			t.Errorf("%s, verify: %v, %v", c.name, found, err)
		}
		if _, err := k.BeginEpoch(soon(t), "a", Position{}, 0); !errors.Is(err, c.begin) {
			t.Errorf("%s, begin an epoch: %v, want %v", c.name, err, c.begin)
		}
		k.close()
	}
}

// What passes every checksum and is not what was sealed in its place is damage: a
// flipped tag or byte, a cell moved within its record, to another or to another epoch.
func TestForgedCells(t *testing.T) {
	swap := func(a, b []byte) {
		for i := range a {
			a[i], b[i] = b[i], a[i]
		}
	}
	const entry = cellEntryBytes + sealedTagBytes
	for name, forge := range map[string]func(meta, x, y, tx, ty []byte){
		"a tag is flipped":      func(_, _, _, tx, _ []byte) { tx[9] ^= 1 },
		"a byte is flipped":     func(_, x, _, tx, _ []byte) { x[99] ^= 1; binary.LittleEndian.PutUint32(tx, crcOf(x)) },
		"records are swapped":   func(_, x, y, tx, ty []byte) { swap(x, y); swap(tx, ty) },
		"a record of the other": func(_, x, y, tx, ty []byte) { copy(x, y); copy(tx, ty) },
	} {
		fs := vfs.NewMem()
		o := Options{FS: fs, Create: newIdentity(), Keys: ringOf(t, "acme-1"), Compress: CompressOff}
		j := start(t, "j", o)
		v := volume("a", 64<<10)
		w := beginWith(t, j.Journal, v)
		sx := put(t, w, v, 0, bytes.Repeat([]byte{1}, 4096))
		sy := put(t, w, v, 4096, bytes.Repeat([]byte{2}, 4096))
		px, py := Position{w.epoch.ID, sx}, Position{w.epoch.ID, sy}
		x, y := cellPlace(t, j.Journal, px), cellPlace(t, j.Journal, py)
		j.close()
		if err := fs.RemoveAll("j/index"); err != nil {
			t.Fatal(err)
		}
		b := readFile(t, fs, "j/segments/"+segmentName(1))
		forge(b, b[x.data:][:4096], b[y.data:][:4096], b[x.table:][:entry], b[y.table:][:entry])
		for _, c := range []cellAt{x, y} {
			sealMeta(b[c.frame:][:c.meta])
		}
		writeFile(t, fs, "j/segments/"+segmentName(1), b)
		if err := fs.Remove("j/" + siteLogName); err != nil { // it anchors the chain
			t.Fatal(err)
		}
		j = start(t, "j", o)
		_, err := readAs(t, j.Journal, py, v)
		var damage *DamageError
		if !errors.As(err, &damage) || damage.Seq != sx || damage.What != cellNotSealed {
			t.Errorf("%s: %v", name, err)
		}
		j.close()
	}
}

func crcOf(b []byte) uint32 { return cellCRCs(0, b)[0] }

// cellAt is where the one cell of a record lies in its segment.
type cellAt struct{ frame, meta, table, data int64 }

func cellPlace(t testing.TB, j *Journal, p Position) cellAt {
	t.Helper()
	s, err := j.frameOf(soon(t), p)
	if err != nil {
		t.Fatal(err)
	}
	table := s.offset + frameHeaderBytes
	for i := range s.recs[:p.Seq-s.h.First] {
		table += int64(s.recs[i].encodedBytes())
	}
	return cellAt{s.offset, int64(s.h.MetaBytes), table + recordFixedBytes, s.offset + s.recs[p.Seq-s.h.First].payload}
}

func readFile(t testing.TB, fs vfs.FS, path string) []byte {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, fs vfs.FS, path string, b []byte) {
	t.Helper()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(b)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// eachFile calls f for every file under dir.
func eachFile(t testing.TB, fs vfs.FS, dir string, f func(path string, b []byte)) {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		path := fs.PathJoin(dir, n)
		if st, err := fs.Stat(path); err != nil {
			t.Fatal(err)
		} else if st.IsDir() {
			eachFile(t, fs, path, f)
		} else {
			f(path, readFile(t, fs, path))
		}
	}
}

// What a guest wrote to a sealed group is in no file of the journal, nor is a key.
func TestNoPlaintext(t *testing.T) {
	canary := []byte("the canary sings in the coal mine; ")
	for _, c := range []Compression{CompressOff, CompressAlways} {
		ring := ringOf(t, "acme-1")
		o := Options{FS: vfs.NewMem(), Create: newIdentity(), Keys: ring, Compress: c, SegmentBytes: 128 << 10}
		j := start(t, "j", o)
		v := volume("a", 1<<20)
		w := beginWith(t, j.Journal, v)
		for i := range 60 {
			size := 512 << (i % 8)
			put(t, w, v, int64(i)*512, bytes.Repeat(canary, size/len(canary)+1)[:size])
		}
		must(t, w.WaitDurable(soon(t)))
		put(t, w, v, 0, make([]byte, 512)) // the index learns with this one that those before are durable
		data := j.sealerKey(t)
		m := Maintenance{Retention: Retention{Ladder: []Rung{{Every: time.Hour}}}, FoldBytes: 1, Now: time.Now().Add(48 * time.Hour)}
		if got, err := j.Maintain(soon(t), m); err != nil || got.Runs == 0 {
			t.Fatalf("nothing is folded: %+v, %v", got, err)
		}
		j.close()
		files := 0
		eachFile(t, o.FS, "j", func(path string, b []byte) {
			files++
			for what, secret := range map[string][]byte{"a guest's bytes": canary[:12], "a data key": data, "a tenant's key": ring.keys["acme-1"]} {
				if bytes.Contains(b, secret) {
					t.Errorf("%s holds %s", path, what)
				}
			}
		})
		if files < 6 || len(data) != dataKeyBytes {
			t.Fatalf("%d files, a data key of %d bytes", files, len(data))
		}
	}
}

// sealerKey is the data key in use, as the ring opens its record.
func (r *running) sealerKey(t testing.TB) []byte {
	t.Helper()
	if err := r.waitIndexed(soon(t), len(r.branches), r.Head().Seq); err != nil {
		t.Fatal(err)
	}
	raw, err := r.keys.unwrap(r.o.Keys, r.identity, r.sealer.id)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// pairs is every pair of data key and nonce that was ever used.
type pairs map[string]string

// note adds what the frames of j used, which may be those that were noted before.
func (p pairs) note(t testing.TB, j *Journal, where string) error {
	for _, f := range ship(t, j, Position{}) {
		h, _, recs := decodeAll(t, f.bytes)
		for i, r := range recs {
			if !r.kind.hasPayload() || !r.sealed() {
				continue
			}
			id, ok := j.keys.ids[keyPlace{h.Epoch, r.key}]
			if !ok {
				return fmt.Errorf("record %d: key %d is not known", h.First+Seq(i), r.key)
			}
			raw, err := j.keys.unwrap(j.o.Keys, j.identity, id)
			if err != nil {
				return err
			}
			for c := range r.cells {
				n := cellNonce(r.nonce, uint32(c))
				use := fmt.Sprintf("epoch %s record %d cell %d", h.Epoch, h.First+Seq(i), c)
				k := string(raw) + string(n[:])
				if old, ok := p[k]; ok && old != use {
					return fmt.Errorf("%s: %s and %s have one key and one nonce", where, old, use)
				}
				p[k] = use
			}
		}
	}
	return nil
}

// No pair of key and nonce comes twice: over epochs, openings, crashes, and when a
// host is restored and goes on beside the one that it was copied from.
func noncesAreUnique(t *testing.T, f faults) error {
	mem := vfs.NewCrashableMem()
	rng := newSeed(t)
	id, ring, used := newIdentity(), ringOf(t, "acme-1"), make(pairs)
	v := volume("a", 256<<10)
	live := func(fs vfs.FS, where string, n int) error {
		j := start(t, "j", Options{FS: fs, Create: id, Keys: ring, SegmentBytes: 128 << 10, keyCells: 400, Compress: CompressOff, faults: f})
		w := beginWith(t, j.Journal, v)
		for i := range n {
			put(t, w, v, int64(rng.IntN(32))*4096, noise(rng, 512<<rng.IntN(7)))
			if i == n/2 {
				w = beginWith(t, j.Journal, v)
			}
		}
		if err := w.WaitDurable(soon(t)); err != nil {
			return err
		}
		err := used.note(t, j.Journal, where)
		return errors.Join(err, j.end())
	}
	if err := live(mem, "the first life", 20); err != nil {
		return err
	}
	for i := range 7 {
		one := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: crashRand()})
		two := mem.CrashClone(vfs.CrashCloneCfg{})
		for k, fs := range []*vfs.MemFS{one, two, mem} {
			if err := live(fs, fmt.Sprintf("copy %d of round %d", k, i), 20); err != nil {
				return err
			}
		}
	}
	scale.Counted(t, "journal-nonces", len(used), 800)
	return nil
}

// A data key is succeeded before it has sealed too much, and what it sealed stays
// readable.
func TestDataKeyIsRenewed(t *testing.T) {
	o := Options{FS: vfs.NewMem(), Create: newIdentity(), Keys: ringOf(t, "acme-1"), keyCells: 100, Compress: CompressOff}
	j := start(t, "j", o)
	rng := newSeed(t)
	v := volume("a", 256<<10)
	model := &oracle{sizes: map[cbt.VolumeID]int64{v.ID: v.Size}}
	w := beginWith(t, j.Journal, v)
	for range 100 {
		model.write(t, w, rng, v.ID)
	}
	checkPoint(t, j.Journal, model, "latest")
	cells, last := make(map[uint16]int), uint16(0)
	for _, f := range ship(t, j.Journal, Position{}) {
		_, _, recs := decodeAll(t, f.bytes)
		for _, r := range recs {
			if r.sealed() {
				if r.key < last {
					t.Fatalf("key %d after %d", r.key, last)
				}
				last = r.key
				cells[r.key] += len(r.cells)
			}
		}
	}
	for k, n := range cells {
		if n > 100 {
			t.Errorf("key %d sealed %d cells", k, n)
		}
	}
	if len(cells) < 5 {
		t.Fatalf("%d keys", len(cells))
	}
	j.close()
	j = start(t, "j", o)
	defer j.close()
	checkPoint(t, j.Journal, model, "latest")
}

// A key that cannot be renewed is not used beyond its end.
func TestDataKeyIsUsedUp(t *testing.T) {
	ring := ringOf(t, "acme-1")
	j := start(t, "j", Options{FS: vfs.NewMem(), Create: newIdentity(), Keys: ring, keyCells: 20})
	defer j.close()
	v := volume("a", 64<<10)
	w := beginWith(t, j.Journal, v)
	ring.Remove("acme-1")
	sealed := 0
	for i := range 30 {
		if _, err := w.Record(soon(t), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Length: 512}, Data: bytes.Repeat([]byte{byte(i + 1)}, 512)}); err == nil {
			sealed++
		} else if !errors.Is(err, ErrNoKey) {
			t.Fatal(err)
		}
	}
	if sealed > 20 {
		t.Fatalf("%d cells were sealed", sealed)
	}
}

// Keys show in no form of printing.
func TestKeysArePrintedAsNames(t *testing.T) {
	k := ringOf(t, "acme-1", "acme-2")
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		if s := fmt.Sprintf(verb, k); s != "keys(acme-1, acme-2)" {
			t.Errorf("%s prints %s", verb, s)
		}
	}
	b, err := k.MarshalText()
	if err != nil || strings.Contains(string(b), "aaaa") {
		t.Errorf("marshals as %s, %v", b, err)
	}
	k.Close()
	if _, err := k.Wrap("acme-1", make([]byte, dataKeyBytes), nil); !errors.Is(err, ErrNoKey) {
		t.Errorf("a closed ring wraps: %v", err)
	}
}

// A relays to B, which has no key, and B to C, which has: the frames are the same
// bytes everywhere, and C reads what was written.
func TestBlindRelay(t *testing.T) {
	id, ring, rng := newIdentity(), ringOf(t, "acme-1"), newSeed(t)
	v := volume("a", 256<<10)
	model := &oracle{sizes: map[cbt.VolumeID]int64{v.ID: v.Size}}
	a := start(t, "a", Options{FS: vfs.NewMem(), Create: id, Keys: ring})
	b := start(t, "b", Options{FS: vfs.NewMem(), Create: id})
	c := start(t, "c", Options{FS: vfs.NewMem(), Create: id, Keys: ringOf(t, "acme-1")})
	for _, j := range []*running{a, b, c} {
		defer j.close()
	}
	w := beginWith(t, a.Journal, v)
	for range 60 {
		model.write(t, w, rng, v.ID)
	}
	sent := ship(t, a.Journal, Position{})
	deliver(t, b.Journal, sent)
	relayed := ship(t, b.Journal, Position{})
	for i := range sent {
		if !bytes.Equal(sent[i].bytes, relayed[i].bytes) {
			t.Fatalf("frame %d differs at the relay", i)
		}
	}
	deliver(t, c.Journal, relayed)
	checkPoint(t, c.Journal, model, "latest")
	if err := comparePoint(b.Journal, model, "latest"); !errors.Is(err, ErrNoKey) {
		t.Fatalf("the relay reads: %v", err)
	}
	if c.Head().Durable != a.Head().Durable {
		t.Fatal("the chains differ")
	}
	p, err := resolve(t, b.Journal, "latest")
	if err != nil {
		t.Fatal(err)
	}
	view, err := b.View(soon(t), p)
	if err != nil {
		t.Fatal(err)
	}
	if runs, err := view.Status(soon(t), v.ID, cbt.Extent{Length: v.Size}); err != nil || len(runs) == 0 {
		t.Fatalf("status at the relay: %v, %v", runs, err)
	}
	if err := view.Close(); err != nil {
		t.Fatal(err)
	}
}

// A frame that seals with a key of which no record told is refused.
func TestKeyRecordComesFirst(t *testing.T) {
	id := newIdentity()
	a := start(t, "a", Options{FS: vfs.NewMem(), Create: id, Keys: ringOf(t, "acme-1"), Now: func() time.Time { return fixedTime }})
	defer a.close()
	v := volume("a", 64<<10)
	w := beginWith(t, a.Journal, v)
	put(t, w, v, 0, bytes.Repeat([]byte{1}, 512))
	frames := ship(t, a.Journal, Position{})
	sealed := frames[len(frames)-1]
	b := start(t, "b", Options{FS: vfs.NewMem(), Create: id})
	defer b.close()
	deliver(t, b.Journal, frames[:len(frames)-1])
	forged := bytes.Clone(sealed.bytes)
	copy(forged[200:216], bytes.Repeat([]byte{0xee}, 16))
	h, _ := decodeFrameHeader(forged)
	sealMeta(forged[:h.MetaBytes])
	var damage *DamageError
	if _, _, err := (shipped{bytes: forged}).to(b.Journal); !errors.As(err, &damage) {
		t.Fatalf("a frame of an unknown key: %v", err)
	}
	deliver(t, b.Journal, frames[len(frames)-1:])
}
