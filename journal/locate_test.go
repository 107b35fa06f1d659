package journal

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// What looks for a frame waits for the index no longer than who asks.
func TestLookUpsEndWithWhoAsks(t *testing.T) {
	j := start(t, "j", Options{FS: vfs.NewMem(), Create: newIdentity()})
	defer j.close()
	v := volume("a", 1<<20)
	w := beginWith(t, j.Journal, v)
	for i := range 4 {
		put(t, w, v, int64(i)*4096, make([]byte, 4096))
	}
	must(t, w.WaitDurable(soon(t)))
	end := j.Head().Position
	must(t, j.waitHeld(soon(t), end))
	at := Position{end.Epoch, end.Seq - 2}
	index := func(s Seq) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.indexed = s
		j.broadcastLocked()
	}
	index(at.Seq - 1) // as if it were behind, and stayed so
	defer index(end.Seq)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	for name, look := range map[string]func() error{
		"chain": func() error { _, err := j.ChainOf(gone, at); return err },
		"frame": func() error { _, err := j.frameOf(gone, at); return err },
		"time": func() error {
			_, _, err := j.seqAt(gone, Interval{Epoch: at.Epoch, First: 1, Last: end.Seq}, time.Now())
			return err
		},
		"place": func() error { _, err := j.goOnAfter(gone, at); return err },
	} {
		done := make(chan error, 1)
		go func() { done <- look() }()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", name, err)
			}
		case <-soon(t).Done():
			t.Fatalf("%s waits for nobody", name)
		}
	}
}
