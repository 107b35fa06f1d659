package demo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/testbed/stamp"
)

// slots is how many stamps the disk holds; the load goes round and round.
const (
	slots     = 1024
	diskBytes = 16 << 20
)

// rates are stamps a second: in the calm, while the slots are written anew, and in
// the burst, and what the link carries outside of it, in bytes a second.
type rates struct {
	calm, renew, burst int
	link               string
}

// disk is what is protected at site a, and its load.
type disk interface {
	// volume is the configuration of the disk at a, in YAML flow style; extra is
	// what its group needs besides, at a and at b.
	volume() string
	extra() (a, b string)
	// attach is called when a's daemon answers.
	attach(ctx context.Context, a *daemon) error
	// run stamps at a rate a second, 0 as fast as it goes, until pause, which
	// returns the number of the last answered stamp.
	run(ctx context.Context, rate int) error
	pause(ctx context.Context) (uint64, error)
	written() uint64
	// rates are the load's, and what the link carries.
	rates() rates
	// skew is how far the clock that dates the stamps lies behind this process's, at
	// most seen, for no stamp is younger than nothing where it is seen.
	skew(seen time.Duration) time.Duration
	// attack overwrites every slot with noise.
	attack(ctx context.Context) error
	// die ends what runs at a beside the daemon, as abruptly.
	die() error
	close() error
}

// embedded is a disk that site a serves; the load is in this process.
type embedded struct {
	dir    string
	client *nbd.Client
	writer uint64
	last   atomic.Uint64
	stop   context.CancelFunc
	done   sync.WaitGroup
	err    error // of the load; read after done
}

func (e *embedded) volume() string       { return fmt.Sprintf("embedded: {image: %s/disk.img}", e.dir) }
func (e *embedded) extra() (a, b string) { return "", "" }

func (e *embedded) attach(ctx context.Context, a *daemon) error {
	e.writer = rand.Uint64()
	var err error
	e.client, err = nbd.Dial(ctx, "unix", a.path("nbd.sock"), nbd.DialOptions{Export: "demo/disk"})
	return err
}

func (e *embedded) run(ctx context.Context, rate int) error {
	ctx, e.stop = context.WithCancel(ctx)
	e.done.Go(func() { e.err = e.stamps(ctx, rate) })
	return nil
}

// stamps writes one after the other: each is answered, so safe, before the next.
func (e *embedded) stamps(ctx context.Context, rate int) error {
	var tick <-chan time.Time
	if rate > 0 {
		t := time.NewTicker(time.Second / time.Duration(rate))
		defer t.Stop()
		tick = t.C
	}
	for ctx.Err() == nil {
		if tick != nil {
			select {
			case <-tick:
			case <-ctx.Done():
				return nil
			}
		}
		k := e.last.Load() + 1
		p := make([]byte, stamp.Size)
		stamp.Stamp{Number: k, Writer: e.writer, Time: time.Now()}.Encode(p)
		// Not ctx: a stamp that was begun is answered or failed, never in doubt.
		if err := e.client.WriteAt(context.WithoutCancel(ctx), p, int64(k%slots)*stamp.Size, false); err != nil {
			return fmt.Errorf("write stamp %d: %w", k, err)
		}
		e.last.Store(k)
	}
	return nil
}

func (e *embedded) pause(context.Context) (uint64, error) {
	if e.stop != nil {
		e.stop()
	}
	e.done.Wait()
	return e.last.Load(), e.err
}

func (e *embedded) rates() rates                     { return rates{100, 300, 800, "3MiB"} }
func (e *embedded) skew(time.Duration) time.Duration { return 0 }

func (e *embedded) written() uint64 { return e.last.Load() }

func (e *embedded) attack(ctx context.Context) error {
	rng := rand.NewChaCha8([32]byte{1})
	noise := make([]byte, 64<<10)
	for off := int64(0); off < slots*stamp.Size; off += int64(len(noise)) {
		_, _ = rng.Read(noise) // never fails
		if err := e.client.WriteAt(ctx, noise, off, false); err != nil {
			return fmt.Errorf("overwrite at %d: %w", off, err)
		}
	}
	return nil
}

func (e *embedded) die() error { return nil }

func (e *embedded) close() error {
	_, err := e.pause(context.Background())
	if e.client != nil {
		// After a kill the connection is gone already.
		if cerr := e.client.Close(); cerr != nil && !errors.Is(cerr, nbd.ErrDisconnected) {
			err = errors.Join(err, cerr)
		}
	}
	return err
}
