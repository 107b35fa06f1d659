package journal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// writeRun writes what survives of a change's range and returns its manifest, the
// chain aside. nodes is how many versions the index must have there.
func (t *maintainer) writeRun(ctx context.Context, c *change, in touched, nodes int64, points []runPoint, catalogue func(*runWriter) error) (m manifest, err error) {
	j := t.j
	c.Run = max(j.history().state.Next, 1)
	w, err := newRunWriter(j.o.FS, j.runs.path(c.Run), c.Run, j.identity, j.o.Now(), t.pace)
	if err != nil {
		return m, err
	}
	defer func() {
		if err = errors.Join(err, w.abandon()); err != nil { // space may be what was short
			_ = j.o.FS.Remove(j.runs.path(c.Run)) // else the next opening does
		}
	}()
	s := &sweep{only: make(map[order]int64), faults: j.o.faults}
	for i := range t.leaves {
		if b, ok := t.leaves[i].through(c.After, c.To, points); ok {
			if j.o.faults.runPastPoint {
				for k := range b.bounds {
					b.bounds[k].seq++
				}
			}
			s.histories = append(s.histories, b)
		}
	}
	r := &versionReader{j: j, after: c.After, to: c.To}
	var seen int64
	err = in.each(func(volume uint32, offset int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		vs, err := r.chunk(volume, offset)
		if err != nil {
			return err
		}
		for _, v := range vs {
			if v.node.offset >= offset {
				seen++
			}
		}
		t.progress("fold", seen, nodes)
		return t.copySurvivors(w, volume, s.survivors(offset, vs))
	})
	if err == nil && seen != nodes {
		j.markIndexStale(fmt.Sprintf("%d versions where there are %d", seen, nodes))
		err = &DamageError{Hop: "fold", File: "index", What: fmt.Sprintf("it has %d versions of records that make %d; it will be built anew at the next opening", seen, nodes)}
	}
	if err == nil {
		err = errors.Join(w.flushVersions(), catalogue(w))
	}
	if err != nil {
		return m, err
	}
	for i := range points {
		points[i].only = s.only[points[i].order]
	}
	f, err := w.finish(points)
	if err == nil {
		err = syncDir(j.o.FS, j.runs.dir)
	}
	return manifest{Run: c.Run, Bytes: f.fileBytes(), Root: f.Root, After: c.After, To: c.To, Points: len(points)}, err
}

// copySurvivors adds the survivors of a chunk to the run.
func (t *maintainer) copySurvivors(w *runWriter, volume uint32, ss []survivor) error {
	type source struct {
		file   fileID
		offset int64
	}
	shared := make(map[source]location)
	var buf []byte
	for i := range ss {
		v := &ss[i].version
		var l location
		if n := v.place.storedBytes(); n > 0 {
			from := source{v.place.file, v.place.offset}
			var ok bool
			if l, ok = shared[from]; !ok || !w.usable(l) {
				if cap(buf) < int(n) {
					buf = make([]byte, n)
				}
				buf = buf[:n]
				if err := t.read(v, buf, volume); err != nil {
					return err
				}
				var stored []byte
				one := v.place.packed() || v.place.piece() // several versions have these bytes
				v.place, stored = t.j.packForRun(v.place, v.node, buf)
				var err error
				if l, err = w.store(stored); err != nil {
					return err
				}
				if one {
					shared[from] = l
				}
			}
		}
		if err := w.version(v.indexEntry, v.place, l); err != nil {
			return err
		}
	}
	return nil
}

// read reads and checks a version's stored bytes.
func (t *maintainer) read(v *version, buf []byte, volume uint32) error {
	j := t.j
	if err := t.pace.spend(int64(len(buf))); err != nil {
		return err
	}
	err := j.readAt(v.place.file, buf, v.place.offset)
	what := cellDiffers
	switch {
	case err == nil && (v.place.intact(buf) || j.o.faults.headerOnlyCRC):
		return nil
	case errors.Is(err, ErrClosed):
		return err
	case err != nil:
		what = err.Error()
	}
	return &DamageError{Hop: "fold", Volume: j.volumeOf(volume), Epoch: t.positionOf(order{v.ordinal, v.seq}).Epoch, Seq: v.seq,
		File: v.place.file.name(), Offset: v.place.offset, What: what}
}

// intact reports that stored bytes have their checksums.
func (p place) intact(stored []byte) bool {
	entry, step := entryBytes(p.sealed()), pageBytes
	if p.packed() {
		step = len(stored)
	}
	for c := 0; c < len(stored); c += step {
		sum := crc32.Checksum(stored[c:min(c+step, len(stored))], castagnoli)
		if sum != binary.LittleEndian.Uint32(p.crcs[c/step*entry:]) {
			return false
		}
	}
	return true
}

// copyCatalogue adds the control records and epochs of a range of folded segments.
func (t *maintainer) copyCatalogue(w *runWriter, c change, end frameEnd) error {
	return t.j.eachCatalogued(c, end, w.control)
}

// eachCatalogued calls f for the catalogue's pairs of a range of history that ends
// with end.
func (j *Journal) eachCatalogued(c change, end frameEnd, f func(k, v []byte) error) error {
	for o := max(c.After.Ordinal, 1); o <= c.To.Ordinal; o++ {
		j.mu.Lock()
		b := j.branches[o-1]
		j.mu.Unlock()
		if o == c.To.Ordinal {
			b.Last = end.Cursor
		}
		if err := f(branchKey(o), encodeBody(b)); err != nil {
			return err
		}
	}
	return j.scanPrefix(prefixHappen, func(k, v []byte) error {
		o := order{binary.BigEndian.Uint32(k[3:]), Seq(binary.BigEndian.Uint64(k[7:]))}
		if !o.after(c.After) || o.after(c.To) {
			return nil
		}
		return f(k, v)
	})
}
