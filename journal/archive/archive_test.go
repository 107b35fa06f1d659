package archive_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/journal/archive"
	"github.com/novacron/afterimage/journal/archive/archivetest"
)

// world is a real journal with two volumes, and what was written to them.
type world struct {
	*testing.T
	journal *journal.Journal
	writer  *journal.Writer
	volumes []cbt.Volume
	images  map[cbt.VolumeID][]byte
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, images: make(map[cbt.VolumeID][]byte)}
	var err error
	id := &journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID(), Stream: cbt.NewID()}
	w.journal, err = journal.Open("j", journal.Options{FS: vfs.NewMem(), Create: id})
	w.must(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.journal.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-done, w.journal.Close()); err != nil {
			t.Error(err)
		}
	})
	w.writer, err = w.journal.BeginEpoch(ctx, "a", journal.Position{}, 0)
	w.must(err)
	for name, size := range map[string]int64{"root": 21<<20 + 512, "data": 9 << 20} {
		v := cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: name, Size: size}
		w.must(w.writer.AddVolume(ctx, v))
		w.record(cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
		w.volumes = append(w.volumes, v)
		w.images[v.ID] = make([]byte, size)
	}
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) record(ev cbt.Event) {
	w.Helper()
	p, err := w.writer.Record(context.Background(), ev)
	w.must(err)
	w.must(p.Wait(context.Background()))
}

func (w *world) write(v cbt.Volume, off int64, data []byte) {
	w.record(cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: off, Length: int64(len(data))}, Data: bytes.Clone(data)})
	copy(w.images[v.ID][off:], data)
}

// fill writes at random, at the volumes' ends, and zeros that are data.
func (w *world) fill(seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 20 {
		v := w.volumes[rng.IntN(2)]
		p := make([]byte, 512*(1+rng.IntN(200)))
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		// The third chunk of each stays as it is.
		off := rng.Int64N((v.Size - int64(len(p))) / 512)
		if c := off * 512 / archive.ChunkBytes; c != 2 && (off*512+int64(len(p))-1)/archive.ChunkBytes != 2 {
			w.write(v, off*512, p)
		}
	}
	for _, v := range w.volumes {
		w.write(v, v.Size-512, bytes.Repeat([]byte{7}, 512))
		w.write(v, 2*archive.ChunkBytes, make([]byte, 512))
	}
}

func (w *world) create(s archive.Store) (*archive.Manifest, error) {
	ctx := w.Context()
	at, err := journal.ParseAt("latest")
	w.must(err)
	p, err := w.journal.Resolve(ctx, at)
	w.must(err)
	v, err := w.journal.View(ctx, p)
	w.must(err)
	defer v.Close()
	return archive.Create(ctx, s, v, archive.Options{
		Identity: w.journal.Identity(), Lineage: w.journal.Lineage(), Machines: map[string][]byte{"web": []byte("<domain/>")},
	})
}

func (w *world) tenant() cbt.ID { return w.journal.Identity().Tenant }

// disk is an io.WriterAt of fixed size.
type disk []byte

func (d disk) WriteAt(p []byte, off int64) (int, error) { return copy(d[off:], p), nil }

func (w *world) checkRestores(s archive.Store, id cbt.ID, images map[cbt.VolumeID][]byte) {
	w.Helper()
	for _, v := range w.volumes {
		for _, blank := range []bool{true, false} {
			d := make(disk, v.Size)
			if !blank {
				copy(d, bytes.Repeat([]byte{0xee}, len(d)))
			}
			if err := archive.Restore(w.Context(), s, w.tenant(), id, v.ID, d, blank); err != nil {
				w.Fatal(err)
			}
			if !bytes.Equal(d, images[v.ID]) {
				w.Errorf("volume %s, blank %v: it differs", v.Name, blank)
			}
		}
	}
}

func (w *world) copyImages() map[cbt.VolumeID][]byte {
	out := make(map[cbt.VolumeID][]byte)
	for id, b := range w.images {
		out[id] = bytes.Clone(b)
	}
	return out
}

func TestArchivesRestoreToTheirPoints(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := newWorld(t)
	dir := t.TempDir()
	s := openDirectory(t, dir)
	w.fill(seed)
	first, err := w.create(s)
	w.must(err)
	then := w.copyImages()
	w.fill(seed + 1)
	second, err := w.create(s)
	w.must(err)
	s = openDirectory(t, dir)
	w.checkRestores(s, first.ID, then)
	w.checkRestores(s, second.ID, w.images)
	list, err := archive.List(t.Context(), s, w.tenant())
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	for _, e := range list {
		want := map[cbt.ID]*archive.Manifest{first.ID: first, second.ID: second}[e.ID]
		e.Manifest.Point.Time = want.Point.Time // its zone and monotonic part are not kept
		if e.Err != nil || !reflect.DeepEqual(e.Manifest, want) {
			t.Errorf("%v\n%+v\n%+v", e.Err, e.Manifest, want)
		}
	}
	if n := len(first.Lineage); n == 0 || first.Lineage[n-1].Last != first.Point.Seq {
		t.Errorf("lineage %+v, point %v", first.Lineage, first.Point)
	}
	for _, v := range first.Volumes {
		for _, c := range v.Chunks {
			if c.Index == 2 && v.Name == "root" {
				t.Errorf("zeros are stored: %s", v.Name)
			}
		}
	}
	sum, err := archive.Verify(t.Context(), s, w.tenant(), second.ID)
	if err != nil || sum.Chunks < 5 || sum.Bytes < 4*archive.ChunkBytes {
		t.Errorf("%+v, %v", sum, err)
	}
	if other, err := archive.List(t.Context(), s, cbt.NewID()); err != nil || len(other) > 0 {
		t.Errorf("another tenant sees %v, %v", other, err)
	}
	if err := archive.Restore(t.Context(), s, w.tenant(), first.ID, cbt.VolumeID(cbt.NewID()), disk{}, true); !errors.Is(err, archive.ErrUnknown) {
		t.Errorf("unknown volume: %v", err)
	}
	if _, err := archive.Verify(t.Context(), s, w.tenant(), cbt.NewID()); !errors.Is(err, archive.ErrNotFound) {
		t.Errorf("unknown archive: %v", err)
	}
}

// Promise 6: a flipped byte, a cut, a swap or a loss of any object is found and
// named, and what it does not touch stays readable.
func TestDamageIsNamed(t *testing.T) {
	w := newWorld(t)
	s := new(archivetest.Memory)
	w.fill(3)
	m, err := w.create(s)
	w.must(err)
	ctx := t.Context()
	names, err := s.List(ctx, "")
	w.must(err)
	n := 0
	damage := func(name, how string, change func([]byte) []byte) {
		t.Helper()
		n++
		whole, err := s.Get(ctx, name, 1<<30)
		w.must(err)
		if bad := change(bytes.Clone(whole)); bad == nil {
			w.must(s.Delete(ctx, name))
		} else {
			w.must(s.Put(ctx, name, bad))
		}
		w.checkDamage(s, m, name, how)
		w.must(s.Put(ctx, name, whole))
	}
	for i, name := range names {
		for _, at := range []float64{0, 0.37, 0.99} {
			damage(name, "flip", func(b []byte) []byte { b[int(at*float64(len(b)))] ^= 4; return b })
		}
		damage(name, "cut", func(b []byte) []byte { return b[:len(b)-1] })
		damage(name, "grown", func(b []byte) []byte { return append(b, 'x') })
		other, err := s.Get(ctx, names[(i+1)%len(names)], 1<<30)
		w.must(err)
		damage(name, "swap", func([]byte) []byte { return other })
		if strings.Contains(name, "/chunks/") {
			damage(name, "loss", func([]byte) []byte { return nil })
		}
	}
	if _, err := archive.Verify(ctx, s, w.tenant(), m.ID); err != nil {
		t.Error(err)
	}
	t.Logf("%d damages of %d objects", n, len(names))
	if n < 40 {
		t.Errorf("only %d damages", n)
	}
}

func (w *world) checkDamage(s archive.Store, m *archive.Manifest, name, how string) {
	w.Helper()
	sum, err := archive.Verify(w.Context(), s, w.tenant(), m.ID)
	var d *archive.DamageError
	if !errors.As(err, &d) || !errors.Is(err, archive.ErrDamaged) || d.Object != name || d.Archive != m.ID {
		w.Errorf("%s of %s: %v", how, name, err)
		return
	}
	if !strings.Contains(name, "/chunks/") {
		list, err := archive.List(w.Context(), s, w.tenant())
		if err != nil || len(list) != 1 || !errors.Is(list[0].Err, archive.ErrDamaged) {
			w.Errorf("%s of the manifest: listed as %+v, %v", how, list, err)
		}
		return
	}
	if len(sum.Damage) != 1 || d.Volume == "" || d.Chunk < 0 {
		w.Errorf("%s of %s: %+v", how, name, sum.Damage)
	}
	for _, v := range w.volumes {
		got := make(disk, v.Size)
		err := archive.Restore(w.Context(), s, w.tenant(), m.ID, v.ID, got, true)
		if hit := v.Name == d.Volume; hit != errors.Is(err, archive.ErrDamaged) {
			w.Errorf("%s of %s: restore of %s: %v", how, name, v.Name, err)
		}
		if err == nil && !bytes.Equal(got, w.images[v.ID]) {
			w.Errorf("%s of %s: %s differs", how, name, v.Name)
		}
	}
}

// A Create that fails at any call leaves no archive; the next one is whole.
func TestFailedCreateLeavesNoArchive(t *testing.T) {
	w := newWorld(t)
	w.fill(4)
	s := new(archivetest.Memory)
	n := 1
	for ; ; n++ {
		s.FailAt(n)
		m, err := w.create(s)
		s.FailAt(0)
		if err == nil {
			w.checkRestores(s, m.ID, w.images)
			break
		}
		if !errors.Is(err, archivetest.ErrBroken) {
			t.Fatal(err)
		}
		if list, err := archive.List(t.Context(), s, w.tenant()); err != nil || len(list) > 0 {
			t.Fatalf("failed at call %d: %v, %v", n, list, err)
		}
	}
	if t.Logf("%d calls", n-1); n < 5 {
		t.Errorf("only %d calls", n-1)
	}
}

func TestLineageMustHoldThePoint(t *testing.T) {
	w := newWorld(t)
	at, err := journal.ParseAt("latest")
	w.must(err)
	p, err := w.journal.Resolve(t.Context(), at)
	w.must(err)
	v, err := w.journal.View(t.Context(), p)
	w.must(err)
	_, err = archive.Create(t.Context(), new(archivetest.Memory), v, archive.Options{Identity: w.journal.Identity()})
	if !errors.Is(err, archive.ErrLineage) {
		t.Error(err)
	}
}

// An unknown incompatible feature is refused by name, others are read.
func TestFeatures(t *testing.T) {
	w := newWorld(t)
	s := new(archivetest.Memory)
	m, err := w.create(s)
	w.must(err)
	for _, c := range []struct {
		change func(*archive.Manifest)
		want   error
	}{
		{func(m *archive.Manifest) { m.Features.Incompat = 1 << 7 }, archive.ErrIncompatible},
		{func(m *archive.Manifest) { m.Version++ }, archive.ErrIncompatible},
		{func(m *archive.Manifest) { m.Features.ROCompat = 1 << 7 }, nil},
		{func(m *archive.Manifest) { m.Features.Compat = 1 << 7 }, nil},
		{func(m *archive.Manifest) { m.ChunkBytes = 1 }, archive.ErrDamaged},
		{func(m *archive.Manifest) { m.Identity.Tenant = cbt.NewID() }, archive.ErrDamaged},
		{func(m *archive.Manifest) { m.Volumes[0].Chunks = []archive.Chunk{{Index: 1 << 40}} }, archive.ErrDamaged},
		{func(m *archive.Manifest) { m.Volumes[0].Size = -1 }, archive.ErrDamaged},
	} {
		altered := *m
		altered.Volumes = append([]archive.Volume(nil), m.Volumes...)
		c.change(&altered)
		w.must(s.Put(t.Context(), w.tenant().String()+"/archives/"+m.ID.String()+".json", archive.Encode(t, &altered)))
		if _, err := archive.Read(t.Context(), s, w.tenant(), m.ID); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", altered.Features, err, c.want)
		}
	}
}

func TestStoreThatIsNotThere(t *testing.T) {
	if _, err := archive.OpenDirectory(t.TempDir() + "/none"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
