package journal

import (
	"testing"

	"github.com/novacron/afterimage/cbt"
)

// However many chunks of however many views are read, the cache stays in its bound,
// and a chunk of another generation is never given.
func TestChunkCacheIsBounded(t *testing.T) {
	c := chunkCache{limit: chunkCacheBytes}
	r := &resolved{e: cbt.Extent{Length: chunkBytes}, bytes: 5000}
	held := func() (n int64) {
		for _, m := range []map[chunkKey]*cachedChunk{c.young, c.old} {
			for _, e := range m {
				n += e.bytes + chunkEntryBytes
			}
		}
		return n
	}
	hot := chunkKey{view: 1, volume: 1}
	c.put(hot, 7, r)
	for k := range int64(5 * chunkCacheBytes / 5000) {
		c.put(chunkKey{view: 2, volume: 1, chunk: k * chunkBytes}, 7, r)
		if k%500 == 0 && c.get(hot, 7) == nil {
			t.Fatalf("what is read again and again was forgotten after %d others", k)
		}
	}
	if n := held(); n > chunkCacheBytes || n < chunkCacheBytes/4 {
		t.Errorf("the cache holds %d bytes of at most %d", n, chunkCacheBytes)
	}
	if c.get(hot, 8) != nil {
		t.Error("a chunk was given that was resolved before files were taken away")
	}
}

// A small read resolves its chunk as a whole only when reads come back to it.
func TestTouches(t *testing.T) {
	var s touches
	for k := range int64(1 << 16) {
		if s.often(1, k*chunkBytes) {
			t.Fatalf("chunk %d was touched once", k)
		}
	}
	for n := range 5 {
		if got, want := s.often(3, 77*chunkBytes), n+1 >= touchesBeforeWhole; got != want {
			t.Errorf("touch %d: often is %v", n+1, got)
		}
	}
}
