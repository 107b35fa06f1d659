package journal

import "sync"

// A frame is laid out while it is gathered. Payloads are copied once, by whoever
// records them and beside each other, to the place that they have in the frame; only
// header and records, whose size is known at last, are put before them:
//
//	pages  | room, at first unused      | payload | pad | payload | … | pad to a page |
//	frame            | header | records | pad to a page ^ area begins
//
// Places in the area are multiples of the page where the frame's are, so a payload's
// offset agrees with its volume's. A frame whose payloads would take a page less
// right behind its records is small, and is moved together.
const (
	metaRoom   = 64 << 10 // for header and records; a frame with more is copied
	areaBytes  = 512<<10 - metaRoom
	smallFrame = 16 << 10  // of payloads: worth moving to save a page
	frameTail  = pageBytes // an image ends with its last page
)

// area is where the payloads of a commit gather. Places are given under mu.
type area struct {
	epoch EpochID
	mem   *pages // nil: no payload yet
	used  int64  // from metaRoom on
	fill  sync.WaitGroup
}

// fits reports that r's payload has a place left.
func (a *area) fits(r *record) bool {
	if len(r.data) == 0 || a.mem == nil {
		return true
	}
	return r.placeAt(a.used)+int64(len(r.data)) <= int64(len(a.mem.b))-metaRoom-frameTail
}

// placeAt is the first place from at on that r's alignment allows.
func (r *record) placeAt(at int64) int64 {
	a := r.alignment()
	return at + (r.extent.Offset%a-at%a+a)%a
}

// placeLocked gives r's payload its place in the area, as its offset from metaRoom;
// whoever placed it calls fillIn.
func (a *area) placeLocked(r *record) {
	if len(r.data) == 0 {
		return
	}
	at := r.placeAt(a.used)
	if a.mem == nil {
		a.mem = takePages(max(metaRoom+areaBytes, metaRoom+at+int64(len(r.data))+frameTail))
	}
	clear(a.mem.b[metaRoom+a.used : metaRoom+at])
	r.payload, r.stored = at, uint32(len(r.data))
	a.used = at + int64(len(r.data))
	a.fill.Add(1)
}

var sealings = sync.Pool{New: func() any { return new(sealing) }}

// fillIn puts r's payload, sealed if it is to be, in its place. The caller's buffer is
// the caller's again.
func (c *commit) fillIn(r *record, s Seq, id Identity) {
	defer c.payload.fill.Done()
	p := c.payload.mem.b[metaRoom:]
	if r.sealed() {
		m := sealings.Get().(*sealing)
		m.bound = r.bound(id, r.volumeID, c.payload.epoch, s)
		r.seal(p, c.sealer.dataKey, m)
		sealings.Put(m)
	} else {
		copy(p[r.payload:], r.data)
	}
	r.data = nil
}

// buildFrame puts header and records before the payloads of c, which has left the
// queue. The image lies in mem, and is whole pages.
func (j *Journal) buildFrame(c *commit) (h frameHeader, image []byte, mem *pages) {
	a := &c.payload
	a.fill.Wait()
	meta := frameHeaderBytes
	for _, r := range c.recs {
		meta += r.encodedBytes()
	}
	h = j.headerOf(c, meta)
	room := pagesOf(int64(meta))
	h.Bytes = room + pagesOf(a.used)
	if tight := c.tight(meta); tight > 0 && tight < h.Bytes || room > metaRoom || a.mem == nil {
		image, mem = c.move(meta, &h)
	} else {
		mem = a.mem
		image = mem.b[metaRoom-room:][:h.Bytes]
		clear(image[meta:room])
		clear(image[room+a.used:])
		for _, r := range c.recs {
			if r.stored > 0 {
				r.payload += room
			}
		}
	}
	h.encode(image)
	b := image[:frameHeaderBytes]
	for _, r := range c.recs {
		b = r.encode(b)
	}
	sealMeta(image[:meta])
	return h, image, mem
}

func pagesOf(n int64) int64 { return (n + pageBytes - 1) &^ (pageBytes - 1) }

// tight is the size of c's frame with its payloads right behind its records; 0 when
// it is not small.
func (c *commit) tight(meta int) int64 {
	if c.payload.used > smallFrame {
		return 0
	}
	at := int64(meta)
	for _, r := range c.recs {
		if r.stored > 0 {
			at = r.placeAt(at) + int64(r.stored)
		}
	}
	return pagesOf(at)
}

// move lays c's frame out anew, in memory of its own.
func (c *commit) move(meta int, h *frameHeader) ([]byte, *pages) {
	size := int64(meta)
	for _, r := range c.recs {
		if r.stored > 0 {
			size = r.placeAt(size) + int64(r.stored)
		}
	}
	h.Bytes = pagesOf(size)
	mem := takePages(h.Bytes)
	image, at := mem.b, int64(meta)
	for _, r := range c.recs {
		if r.stored == 0 {
			continue
		}
		to := r.placeAt(at)
		clear(image[at:to])
		copy(image[to:], c.payload.mem.b[metaRoom+r.payload:][:r.stored])
		r.payload, at = to, to+int64(r.stored)
	}
	clear(image[at:])
	c.payload.mem.free()
	c.payload.mem = nil
	return image, mem
}

func (j *Journal) headerOf(c *commit, meta int) frameHeader {
	j.mu.Lock()
	defer j.mu.Unlock()
	e, known := j.branches[c.ordinal-1].Epoch, j.chained[len(j.chained)-1].Cursor
	h := frameHeader{
		MetaBytes: meta, Count: len(c.recs), First: c.first, Last: c.last(), Time: c.recs[0].time, Durable: j.synced,
		ChainSeq: known.Seq, Chain: known.Chain, Identity: j.identity, Epoch: e.ID, Number: e.Number, Incarnation: j.inc,
	}
	for _, r := range c.recs {
		if r.kind.hasPayload() {
			h.Features.Incompat |= uint32(r.flags)
		}
		if r.sealed() {
			h.KeyID = c.sealer.id
		}
	}
	return h
}
