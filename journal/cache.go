package journal

import (
	"sync"
	"sync/atomic"

	"github.com/novacron/afterimage/cbt"
)

// chunkCache keeps what chunks of views are made of, so that a read of a served
// disk asks the index once a chunk and not once a block. History is immutable as of
// a point; only folding moves it to other files, and then a chunk of an older
// generation (Journal.foldGen) is none.
//
// It is two maps of at most half of the limit: what is asked for in the old
// one moves to the young one, and when that is full the old one is forgotten. So it
// is bounded for all views of a journal together, and a view that is closed costs
// nothing.
type chunkCache struct {
	mu         sync.Mutex // guards all below
	young, old map[chunkKey]*cachedChunk
	bytes      int64 // of young
	limit      int64
}

const (
	chunkCacheBytes = 32 << 20
	chunkEntryBytes = 128 // of a map's entry and what it points to, about
)

type chunkKey struct {
	view   uint64
	volume uint32
	chunk  int64 // offset
}

type cachedChunk struct {
	gen uint64
	*resolved
}

func (c *chunkCache) get(k chunkKey, gen uint64) *resolved {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.young[k]
	if e == nil {
		if e = c.old[k]; e != nil {
			c.putLocked(k, e)
		}
	}
	if e == nil || e.gen != gen {
		return nil
	}
	return e.resolved
}

func (c *chunkCache) put(k chunkKey, gen uint64, r *resolved) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.putLocked(k, &cachedChunk{gen, r})
}

func (c *chunkCache) putLocked(k chunkKey, e *cachedChunk) {
	if c.bytes+e.bytes+chunkEntryBytes > c.limit/2 || c.young == nil {
		c.young, c.old, c.bytes = make(map[chunkKey]*cachedChunk), c.young, 0
	}
	if was := c.young[k]; was != nil {
		c.bytes -= was.bytes + chunkEntryBytes
	}
	c.young[k] = e
	c.bytes += e.bytes + chunkEntryBytes
}

// touches notes which chunks small reads came to: a chunk is resolved as a whole,
// which may take a thousand times as long as one block of it, only when reads come
// back to it. It forgets, and it may take one chunk for another.
type touches [1024]atomic.Uint64

const touchesBeforeWhole = 3

func (t *touches) often(volume uint32, chunk int64) bool {
	k := uint64(chunk)/chunkBytes<<8 ^ uint64(volume)<<40
	slot := &t[(k>>8*0x9e3779b97f4a7c15)>>54]
	n := slot.Load()
	if n&^0xff != k {
		slot.Store(k | 1)
		return false
	}
	slot.Store(n + 1)
	return n&0xff+1 >= touchesBeforeWhole
}

// look is what e, which lies in one chunk, is made of: from the cache, or from the
// index. The result may cover more than e. The caller holds j.reading.
func (a *asOf) look(volume uint32, e cbt.Extent) (*resolved, error) {
	if a.touches == nil {
		return a.resolve(volume, e)
	}
	gen := a.j.foldGen.Load()
	k := chunkKey{a.view, volume, e.Offset &^ (chunkBytes - 1)}
	if r := a.j.chunks.get(k, gen); r != nil {
		return r, nil
	}
	if e.Length < chunkBytes/4 && !a.touches.often(volume, k.chunk) {
		return a.resolve(volume, e)
	}
	r, err := a.resolve(volume, cbt.Extent{Offset: k.chunk, Length: chunkBytes})
	if err == nil {
		a.j.chunks.put(k, gen, r)
	}
	return r, err
}
