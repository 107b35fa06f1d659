package journal

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// What a fork leaves behind stays readable, also when the process dies right after
// the fork: the place that the index knows as durable is then the record that the
// new epoch goes on from, which is not where the old one ends.
func TestForkKeepsTheTailItLeaves(t *testing.T) {
	w := newWorld(vfs.NewCrashableMem())
	o := Options{FS: w.fs, Create: newIdentity(), Sync: SyncPower}
	j := start(t, "j", o)
	v := volume("a", 64<<10)
	wr := beginWith(t, j.Journal, v)
	fork := Position{wr.epoch.ID, put(t, wr, v, 0, bytes.Repeat([]byte{1}, 4096))}
	var left Position
	for range 5 {
		left = Position{wr.epoch.ID, put(t, wr, v, 0, bytes.Repeat([]byte{2}, 4096))}
	}
	must(t, wr.WaitDurable(soon(t)))
	j.syncing.lock() // the index is on the disk before the new epoch is
	flushed := make(chan error, 1)
	go func() {
		err := j.waitFor(soon(t), func() bool { return len(j.branches) == 2 && j.indexed > fork.Seq })
		flushed <- errors.Join(err, j.db.Flush())
		j.syncing.unlock()
	}()
	_, err := j.BeginEpoch(soon(t), "b", fork, 0)
	must(t, errors.Join(err, <-flushed))
	clone := w.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: crashRand()})
	j.close()
	for range 2 { // what an opening finds out is kept by the next
		o.FS = clone
		k, err := Open("j", o)
		must(t, err)
		if b, err := readAs(t, k, left, v); err != nil || b[0] != 2 {
			t.Fatalf("the last record of what was left: %v", err)
		}
		must(t, k.Close())
	}
}
