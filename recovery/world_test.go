package recovery

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const patience = time.Minute

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waitUntil polls until cond holds.
func waitUntil(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick, late := time.NewTicker(2*time.Millisecond), time.After(patience)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test -update rewrites it):\n%s", path, got)
	}
}

func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// running is an open journal whose Run runs.
type running struct {
	*journal.Journal
	stop context.CancelFunc
	done chan error
}

func open(t testing.TB, dir string, id *journal.Identity) *running {
	t.Helper()
	j, err := journal.Open(dir, journal.Options{Create: id})
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	r := &running{j, stop, make(chan error, 1)}
	go func() { r.done <- j.Run(ctx) }()
	return r
}

func (r *running) close(t testing.TB) {
	t.Helper()
	r.stop()
	must(t, errors.Join(<-r.done, r.Close()))
}

// abandon lets go of a journal as a crash does, without caring what it says.
func (r *running) abandon() {
	r.stop()
	<-r.done
	_ = r.Close()
}

func newIdentity() *journal.Identity {
	return &journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID(), Stream: cbt.NewID()}
}

// begin is BeginEpoch, tried until Run runs.
func begin(t testing.TB, j *running, site string) *journal.Writer {
	t.Helper()
	ctx := testContext(t)
	var w *journal.Writer
	waitUntil(t, "the journal to run", func() bool {
		var err error
		w, err = j.BeginEpoch(ctx, site, journal.Position{}, 0)
		if err != nil && !errors.Is(err, journal.ErrClosed) {
			t.Fatal(err)
		}
		return err == nil
	})
	return w
}

func volume(name string, size int64) cbt.Volume {
	return cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: name, Size: size}
}

func record(t testing.TB, w *journal.Writer, ev cbt.Event) {
	t.Helper()
	p, err := w.Record(testContext(t), ev)
	must(t, err)
	must(t, p.Wait(testContext(t)))
}

func write(t testing.TB, w *journal.Writer, v cbt.Volume, off int64, data []byte) {
	t.Helper()
	record(t, w, cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Offset: off, Length: int64(len(data))}, Data: bytes.Clone(data)})
}

func synced(t testing.TB, w *journal.Writer, vs ...cbt.Volume) {
	t.Helper()
	for _, v := range vs {
		must(t, w.AddVolume(testContext(t), v))
		record(t, w, cbt.Event{Kind: cbt.EventSynced, Volume: v.ID})
	}
}

func resolve(t testing.TB, j *journal.Journal, at string) journal.Point {
	t.Helper()
	a, err := journal.ParseAt(at)
	must(t, err)
	p, err := j.Resolve(testContext(t), a)
	must(t, err)
	return p
}

func view(t testing.TB, j *journal.Journal, at string) *journal.View {
	t.Helper()
	v, err := j.View(testContext(t), resolve(t, j, at))
	must(t, err)
	t.Cleanup(func() { v.Close() })
	return v
}

func fill(rng *rand.Rand, n int64) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32()) | 1 // never zero, so that a lost byte is seen
	}
	return p
}
