package site

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

// promoted is the pair after a failover to b, whose disks live in the journal alone.
func promoted(t *testing.T) (w *world, b *running, boot func(*running) *running) {
	t.Helper()
	w = newWorld(t)
	ca, cb := w.pair("", "")
	a, b := w.runPair(ca, cb)
	a.awaitState("web", control.StateSynced)
	a.write("web/root", 1, 0, 1<<20)
	awaitLevel(a, b, "web")
	a.stop()
	if _, err := b.Failover(context.Background(), control.FailoverRequest{Group: "web", At: "latest", Force: true}, func(control.Progress) {}); err != nil {
		t.Fatal(err)
	}
	return w, b, func(b *running) *running { b.stop(); return w.run(cb) }
}

func (r *running) content(name string, size int64) []byte {
	r.t.Helper()
	p := make([]byte, size)
	if err := r.device(name).ReadAt(context.Background(), p, 0); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// Disks are moved while they are written to; the next life serves them from where they
// lie, and the journal has every write.
func TestDisksAreMovedWhileTheyAreWrittenTo(t *testing.T) {
	t.Parallel()
	w, b, boot := promoted(t)
	ctx := context.Background()
	dir := filepath.Join(w.dir, "images")
	if _, err := b.MoveDisks(ctx, control.MoveRequest{Group: "web", To: dir}, func(control.Progress) {}); err == nil {
		t.Fatal("a move into a directory that is not there")
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
	model := b.content("web/root", 1<<20)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	write := func(d nbd.Device) {
		p := make([]byte, 512*(1+rng.IntN(16)))
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		off := 512 * rng.Int64N((1<<20-int64(len(p)))/512)
		if err := d.WriteAt(ctx, p, off, false); err != nil {
			t.Errorf("write: %v", err)
		}
		copy(model[off:], p)
	}
	d := b.device("web/root")
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				write(d)
			}
		}
	})
	done, err := b.MoveDisks(ctx, control.MoveRequest{Group: "web", To: dir}, func(control.Progress) {})
	if err != nil || len(done.Volumes) != 2 || done.Volumes[0].Pause <= 0 {
		t.Fatalf("move: %+v, %v", done, err)
	}
	close(stop)
	wg.Wait()
	write(d)
	again, err := b.MoveDisks(ctx, control.MoveRequest{Group: "web", To: dir}, func(control.Progress) {})
	if err != nil || !again.Volumes[0].Before {
		t.Errorf("moved again: %+v, %v", again, err)
	}
	image := filepath.Join(dir, "default-web-root.img")
	b = boot(b)
	b.awaitState("web", control.StateSynced)
	if !bytes.Equal(b.content("web/root", 1<<20), model) {
		t.Error("the next life serves something else than what was written")
	}
	if on, err := os.ReadFile(image); err != nil || !bytes.Equal(on, model) {
		t.Errorf("the image holds something else: %v", err)
	}
	g, err := b.Group(ctx, "web")
	if err != nil || g.Volumes[1].Kind != kindEmbedded {
		t.Errorf("volumes %+v, %v", g.Volumes, err)
	}
	v, err := b.serve(ctx, control.ServeRequest{Group: "web", At: "latest"})
	if err != nil {
		t.Fatal(err)
	}
	v.close(errClosed)
	<-v.done
	// An image that is gone is no reason to serve less than was answered.
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	b = boot(b)
	await(t, "the group says that its image is gone", func() bool {
		f, ok := b.groupLine("web").Error.(*fault.Error)
		return ok && f.Code == fault.ImageTrouble
	})
}

// What fails before the end leaves the disks in the journal.
func TestAMoveThatIsInterruptedLeavesTheDisksWhereTheyWere(t *testing.T) {
	t.Parallel()
	w, b, boot := promoted(t)
	dir := filepath.Join(w.dir, "images")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	before := b.content("web/root", 1<<20)
	ctx, stop := context.WithCancelCause(context.Background())
	over := errors.New("the caller went away")
	_, err := b.MoveDisks(ctx, control.MoveRequest{Group: "web", To: dir}, func(p control.Progress) {
		stop(over)
	})
	if !errors.Is(err, over) {
		t.Errorf("interrupted: %v", err)
	}
	b = boot(b)
	b.awaitState("web", control.StateSynced)
	if !bytes.Equal(b.content("web/root", 1<<20), before) {
		t.Error("the next life serves something else")
	}
	if _, err := b.MoveDisks(context.Background(), control.MoveRequest{Group: "web", To: dir}, func(control.Progress) {}); err != nil {
		t.Errorf("moved afterwards: %v", err)
	}
}
