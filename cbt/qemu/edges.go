package qemu

import "github.com/novacron/afterimage/cbt"

// edges are the sectors at the ends of a request that it covers only in part,
// as the head shows them; nil where the request ends on a sector.
type edges struct{ first, last []byte }

func (g edges) any() bool { return g.first != nil || g.last != nil }

// readEdges reads them; the sequencer has seen to it that the head is current there.
func (t *tap) readEdges(e, whole cbt.Extent) (edges, error) {
	var g edges
	read := func(off int64) ([]byte, error) {
		p := make([]byte, cbt.SectorBytes)
		return p, t.sink.ReadHead(t.live, t.volume.ID, off, p)
	}
	var err error
	if e.Offset != whole.Offset {
		if g.first, err = read(whole.Offset); err != nil {
			return g, err
		}
	}
	if e.End() != whole.End() {
		if g.last, err = read(whole.End() - cbt.SectorBytes); err != nil {
			return g, err
		}
	}
	return g, nil
}

// put completes data, which is whole with the request's bytes in it, around
// those bytes [from,to) given as e.
func (g edges) put(whole, e cbt.Extent, data []byte) {
	from, to := e.Offset-whole.Offset, e.End()-whole.Offset
	if g.first != nil {
		copy(data[:from], g.first)
	}
	if g.last != nil {
		rest := whole.Length - to
		copy(data[to:], g.last[cbt.SectorBytes-rest:])
	}
}

// zeros are the events that make e zero: the sectors it covers in part are
// written, what lies between them is one zero event of any size.
func (g edges) zeros(v cbt.VolumeID, e, whole cbt.Extent) []cbt.Event {
	if !g.any() {
		return []cbt.Event{{Kind: cbt.EventZero, Volume: v, Extent: whole}}
	}
	edge := func(x cbt.Extent) cbt.Event {
		data := make([]byte, x.Length)
		inner := overlap(x, []cbt.Extent{e})[0]
		part := edges{}
		if inner.Offset != x.Offset {
			part.first = g.first
		}
		if inner.End() != x.End() {
			part.last = g.last
		}
		part.put(x, inner, data)
		return cbt.Event{Kind: cbt.EventWrite, Volume: v, Extent: x, Data: data}
	}
	inner := whole
	var out []cbt.Event
	if whole.Length == cbt.SectorBytes {
		return append(out, edge(whole))
	}
	if g.first != nil {
		out = append(out, edge(cbt.Extent{Offset: whole.Offset, Length: cbt.SectorBytes}))
		inner.Offset += cbt.SectorBytes
		inner.Length -= cbt.SectorBytes
	}
	var last *cbt.Event
	if g.last != nil {
		ev := edge(cbt.Extent{Offset: whole.End() - cbt.SectorBytes, Length: cbt.SectorBytes})
		last = &ev
		inner.Length -= cbt.SectorBytes
	}
	if inner.Length > 0 {
		out = append(out, cbt.Event{Kind: cbt.EventZero, Volume: v, Extent: inner})
	}
	if last != nil {
		out = append(out, *last)
	}
	return out
}

// split cuts an event with data into parts of at most MaxWriteBytes: a request
// of that size that was rounded to sectors is longer.
func split(ev cbt.Event) []cbt.Event {
	var out []cbt.Event
	for len(ev.Data) > cbt.MaxWriteBytes {
		part := ev
		part.Extent.Length = cbt.MaxWriteBytes
		part.Data = ev.Data[:cbt.MaxWriteBytes:cbt.MaxWriteBytes]
		out = append(out, part)
		ev.Extent.Offset += cbt.MaxWriteBytes
		ev.Extent.Length -= cbt.MaxWriteBytes
		ev.Data = ev.Data[cbt.MaxWriteBytes:]
	}
	return append(out, ev)
}
