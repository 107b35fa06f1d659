package journal

import (
	"errors"
	"slices"
	"sort"
	"sync"

	"github.com/novacron/afterimage/cbt"
)

// resolved is what an extent of a volume, in one chunk, is made of as of a point:
// spans that follow on from each other and cover it, each of one version or of none.
// It is immutable.
type resolved struct {
	e        cbt.Extent
	spans    []span
	versions []found
	bytes    int64 // of memory, about
}

// span goes up to where the next one begins, or the extent ends.
type span struct {
	sector  int16 // first one, counted from the extent's begin
	version int16 // index; -1 where nothing was written
}

// found is a version that some sectors of a read are made of.
type found struct {
	node node
	seq  Seq
	place
}

// chunkBytes is how much is resolved at once: the largest node of a payload.
const chunkBytes = 1 << 20

// each yields the spans of r that touch e, cut to it; v is nil where nothing was
// written, or zeros.
func (r *resolved) each(e cbt.Extent, yield func(e cbt.Extent, v *found) error) error {
	first := (e.Offset - r.e.Offset) / cbt.SectorBytes
	i := sort.Search(len(r.spans), func(i int) bool { return int64(r.spans[i].sector) > first }) - 1
	for ; i < len(r.spans); i++ {
		from, end := r.e.Offset+int64(r.spans[i].sector)*cbt.SectorBytes, r.e.End()
		if i+1 < len(r.spans) {
			end = r.e.Offset + int64(r.spans[i+1].sector)*cbt.SectorBytes
		}
		if from = max(from, e.Offset); from >= e.End() {
			break
		}
		var v *found
		if n := r.spans[i].version; n >= 0 && r.versions[n].format != valueZero {
			v = &r.versions[n]
		}
		if err := yield(cbt.Extent{Offset: from, Length: min(end, e.End()) - from}, v); err != nil {
			return err
		}
	}
	return nil
}

// resolver looks one extent up. Its memory is used again.
type resolver struct {
	a       *asOf
	it      iterator
	volume  uint32
	e       cbt.Extent
	key     []byte
	sectors [chunkBytes / cbt.SectorBytes]int16
	found   []found
	crcs    []byte // what the finds' checksums are kept in
}

var resolvers = sync.Pool{New: func() any { return new(resolver) }}

// nextsBeforeSeek is how many keys are passed one by one before a seek is cheaper.
const nextsBeforeSeek = 3

// resolve finds what each sector of e, which lies in one chunk, is made of.
func (a *asOf) resolve(volume uint32, e cbt.Extent) (_ *resolved, err error) {
	if len(a.lineage) == 0 {
		return &resolved{e: e, spans: []span{{0, -1}}}, nil
	}
	r := resolvers.Get().(*resolver)
	defer r.free()
	r.a, r.volume, r.e = a, volume, e
	for i := range r.sectors[:e.Length/cbt.SectorBytes] {
		r.sectors[i] = -1
	}
	if r.it, err = a.j.iterate([]byte{prefixIndex}, []byte{prefixIndex + 1}); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.it.Close()) }()
	a.j.mu.Lock()
	levels := a.j.levels[volume]
	a.j.mu.Unlock()
	for l := maxLevel; l >= 0; l-- {
		if levels&(1<<l) == 0 {
			continue
		}
		if err := r.level(l); err != nil {
			return nil, err
		}
	}
	return r.result(), r.it.Error()
}

func (r *resolver) free() {
	clear(r.found)
	r.found, r.crcs, r.a, r.it = r.found[:0], nil, nil, iterator{}
	resolvers.Put(r)
}

// level finds the newest visible version of every node of level l that touches e.
// Of a single node only its own keys are looked at, and where the filter of a table
// says that it has none, that table not at all.
func (r *resolver) level(l int) error {
	size, newest := nodeBytes(l), len(r.a.lineage)-1
	n := node{l, r.e.Offset / size * size}
	single := n.offset+size >= r.e.End()
	seek := func(n node, interval int) bool {
		r.key = indexKey(r.key, r.volume, n, r.a.ordinals[interval], r.a.lineage[interval].Last)
		if single {
			return r.it.SeekPrefixGE(r.key)
		}
		return r.it.SeekGE(r.key)
	}
	for ok := seek(n, newest); ok; {
		k, err := decodeIndexKey(r.it.Key())
		if err != nil {
			return err
		}
		if k.volume != r.volume || k.node.level != l || k.node.offset >= r.e.End() {
			break
		}
		if k.node.offset < n.offset { // a version below one that was taken
			ok = seek(n, newest)
			continue
		}
		n = k.node
		i, visible := r.a.sees(k)
		switch {
		case visible:
			if err := r.take(k); err != nil {
				return err
			}
		case i >= 0:
			ok = seek(n, i)
			continue
		} // else the node's other versions are older than the lineage, too
		if n.offset += size; single || n.offset >= r.e.End() {
			break
		}
		for range nextsBeforeSeek {
			if ok = r.it.Next(); !ok || r.past(n) {
				break
			}
		}
		if ok && !r.past(n) {
			ok = seek(n, newest)
		}
	}
	return r.it.Error()
}

// past reports that the key is n's or a later node's.
func (r *resolver) past(n node) bool {
	k, err := decodeIndexKey(r.it.Key())
	return err != nil || k.volume != r.volume || k.node.level != n.level || k.node.offset >= n.offset
}

// sees finds the newest interval of the lineage that is not above a version's epoch,
// -1 if there is none, and whether the version lies in it. If it does not, the next
// older version of the node that may is that interval's last.
func (a *asOf) sees(k indexEntry) (interval int, visible bool) {
	i := sort.Search(len(a.ordinals), func(i int) bool { return a.ordinals[i] > k.ordinal }) - 1
	return i, i >= 0 && a.ordinals[i] == k.ordinal && k.seq <= a.lineage[i].Last
}

// take adds the version that the iterator is at, where it is the newest so far.
func (r *resolver) take(k indexEntry) error {
	p, err := decodePlace(r.it.Value(), k.node.level)
	if err != nil {
		return err
	}
	if cap(r.crcs)-len(r.crcs) < len(p.crcs) {
		r.crcs = make([]byte, 0, max(len(p.crcs), 1<<10))
	}
	at := len(r.crcs)
	r.crcs = append(r.crcs, p.crcs...)
	p.crcs = r.crcs[at:len(r.crcs):len(r.crcs)]
	r.found = append(r.found, found{k.node, k.seq, p})
	first, end := max(k.node.offset, r.e.Offset), min(k.node.offset+nodeBytes(k.node.level), r.e.End())
	for s := (first - r.e.Offset) / cbt.SectorBytes; s < (end-r.e.Offset)/cbt.SectorBytes; s++ {
		if o := r.sectors[s]; o < 0 || r.found[o].seq < k.seq {
			r.sectors[s] = int16(len(r.found) - 1)
		}
	}
	return nil
}

// result keeps the finds that some sector is made of.
func (r *resolver) result() *resolved {
	out := &resolved{e: r.e}
	sectors := r.sectors[:r.e.Length/cbt.SectorBytes]
	n := 1
	for i := 1; i < len(sectors); i++ {
		if sectors[i] != sectors[i-1] {
			n++
		}
	}
	out.spans = make([]span, 0, n)
	kept := make([]int16, len(r.found)) // index in out.versions and one
	for i, v := range sectors {
		if i > 0 && v == sectors[i-1] {
			continue
		}
		if v < 0 {
			out.spans = append(out.spans, span{int16(i), -1})
			continue
		}
		if kept[v] == 0 {
			out.versions = append(out.versions, r.found[v])
			kept[v] = int16(len(out.versions))
		}
		out.spans = append(out.spans, span{int16(i), kept[v] - 1})
	}
	out.versions = slices.Clip(out.versions)
	out.bytes = int64(cap(out.spans))*4 + int64(len(out.versions))*128 + 64
	for i := range out.versions {
		out.bytes += int64(len(out.versions[i].crcs))
	}
	return out
}
