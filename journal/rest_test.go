package journal

import (
	"bytes"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/novacron/afterimage/cbt"
)

// restless is a journal whose loops rest for an hour, if nothing ends that.
func restless(t *testing.T) (*running, *Writer, cbt.Volume) {
	o := Options{FS: vfs.NewMem(), Create: newIdentity(), Compress: CompressOff, lonelyRest: time.Hour, finishRest: time.Hour}
	j := start(t, "j", o)
	t.Cleanup(j.close)
	v := volume("a", 8<<20)
	return j, beginWith(t, j.Journal, v), v
}

// So many bytes that are not durable end syncLoop's rest, though nobody waits for them.
func TestManyBytesEndTheRest(t *testing.T) {
	j, w, v := restless(t)
	put(t, w, v, 0, bytes.Repeat([]byte{1}, restBytes))
	until(t, func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		return j.synced == j.written
	})
}

// Many frames that wait for chain and index end finishLoop's rest: no writer waits for it.
func TestManyFramesEndTheRest(t *testing.T) {
	_, w, v := restless(t)
	for i := range 2 * maxUnfinished {
		put(t, w, v, int64(i)*512, bytes.Repeat([]byte{byte(1 + i)}, 512))
	}
}

// Where a Stream follows, what is written becomes durable soon, also what was written
// before it came.
func TestAFollowerShortensTheRest(t *testing.T) {
	j, w, v := restless(t)
	s, err := j.Stream(soon(t), Position{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		to := put(t, w, v, int64(i)*4096, bytes.Repeat([]byte{byte(1 + i)}, 4096))
		endRest(j.urgent.finish) // the chain is not what is looked at here
		for {
			f, err := s.Next(soon(t))
			if err != nil {
				t.Fatal(err)
			}
			if f.Last.Seq >= to {
				break
			}
		}
	}
	if !j.followed.now() || j.restOfSync() != syncRest {
		t.Error("a Stream that was given something does not count")
	}
}
