package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/time/rate"
)

// Scrub bounds a verification.
type Scrub struct {
	BytesPerSecond int64                   // read at most; 0: as fast as the disk
	Progress       func(done, total int64) // bytes; may be nil
}

// Verify scrubs the journal as fast as the disk reads. See Scrub.
func (j *Journal) Verify(ctx context.Context, progress func(done, total int64)) ([]DamageError, error) {
	return j.Scrub(ctx, Scrub{Progress: progress})
}

// Scrub reads every segment up to the durable end as of the call, the site log and
// the identity, and checks each page, header, record, payload and chain value; every
// so many frames it compares what the index says of their records. It returns all
// damage it found, in the order of the files, and an error only when it could not go
// on. What it found it remembers durably: from then on the points whose image
// touches the damage say so (invalid.go). A damaged index is built anew at the next
// opening. Scrubs do not disturb capture and reads; one runs at a time.
func (j *Journal) Scrub(ctx context.Context, o Scrub) ([]DamageError, error) {
	j.scrubbing.Lock()
	defer j.scrubbing.Unlock()
	j.mu.Lock()
	v := verifier{j: j, end: j.chained[0], o: o}
	j.mu.Unlock()
	if o.BytesPerSecond > 0 {
		v.limit = rate.NewLimiter(rate.Limit(o.BytesPerSecond), int(max(o.BytesPerSecond, scanBytes)))
	}
	if v.end.Segment == 0 {
		return nil, nil
	}
	if err := v.small(); err != nil {
		return v.found, err
	}
	p := j.history()
	if len(p.state.Runs) > 0 { // the first frame that is left must chain on to them
		v.last, v.chain, v.known = p.state.End.Position, p.state.End.Chain, true
		v.recent = recent{append(p.state.Recent[:len(p.state.Recent):len(p.state.Recent)], p.state.End.Cursor)}
	}
	if err := v.runs(ctx, p); err != nil {
		return v.found, err
	}
	for n := p.state.floor(); n <= v.end.Segment; n++ {
		if n == v.end.Segment && v.end.Offset == pageBytes {
			break // the log ends with folded history
		}
		if n < j.history().state.floor() { // folded meanwhile, and verified by that
			v.known = false
			continue
		}
		switch err := v.segment(ctx, n); {
		case errors.Is(err, ErrReclaimed): // under our hands
			v.known = false
		case err != nil:
			return v.found, fmt.Errorf("verify segment %s: %w", segmentName(n), err)
		}
	}
	return v.found, j.rememberDamage(v.found)
}

// verifier walks segments in order. The chain is followed from frame to frame;
// behind damage it is picked up again at the next sample.
type verifier struct {
	j     *Journal
	o     Scrub
	limit *rate.Limiter
	end   frameEnd
	found []DamageError
	done  int64

	last   Position // of the last frame seen
	chain  Chain    // after it
	known  bool     // chain is to be trusted
	recent recent
	at     int64 // in the segment
	frames int
}

// comparedFrames is how many frames go by until one is compared with the index.
const comparedFrames = 16

func (v *verifier) damage(n uint64, off int64, what string) *DamageError {
	v.found = append(v.found, DamageError{Hop: "verify", Epoch: v.last.Epoch, Seq: v.last.Seq + 1, File: segmentName(n), Offset: off, What: what, file: segmentID(n)})
	return &v.found[len(v.found)-1]
}

// small checks the files that are read whole.
func (v *verifier) small() error {
	if err := v.j.site.check(); err != nil {
		var d *DamageError
		if !errors.As(err, &d) {
			return fmt.Errorf("verify %s: %w", siteLogName, err)
		}
		v.found = append(v.found, *d)
	}
	if there, err := exists(v.j.o.FS, v.j.o.FS.PathJoin(v.j.dir, staleIndexName)); err != nil {
		return err
	} else if there {
		v.found = append(v.found, DamageError{Hop: "verify", File: "index", What: "a read met damage; it is built anew at the next opening"})
	}
	id, err := readIdentity(v.j.o.FS, v.j.dir)
	var d *DamageError
	switch {
	case errors.As(err, &d):
		d.Hop = "verify"
		v.found = append(v.found, *d)
	case err != nil && !notThere(err):
		return fmt.Errorf("verify %s: %w", identityName, err)
	case err != nil || id != v.j.identity:
		v.found = append(v.found, DamageError{Hop: "verify", File: identityName, What: "it is missing or names another group"})
	}
	return nil
}

// read accounts for n bytes.
func (v *verifier) read(ctx context.Context, n int64) error {
	v.done += n
	if v.o.Progress != nil {
		v.o.Progress(min(v.done, v.end.Bytes), v.end.Bytes)
	}
	return v.pause(ctx, n)
}

// pause returns when n more bytes may be read.
func (v *verifier) pause(ctx context.Context, n int64) error {
	if v.limit == nil {
		return ctx.Err()
	}
	for n > 0 {
		part := min(n, int64(v.limit.Burst()))
		if err := v.limit.WaitN(ctx, int(part)); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// page reads a header or trailer; false when there is none that verifies.
func (v *verifier) page(n uint64, off int64, magic string) (segmentPage, bool, error) {
	p, err := v.j.pageOf(n, off, magic)
	if errors.Is(err, ErrIncompatible) {
		return p, false, err
	}
	return p, err == nil, missing(err)
}

// missing is err unless it says that bytes are not there, which is damage.
func missing(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, errNoFrame) || torn(err) {
		return nil
	}
	return err
}

func (v *verifier) segment(ctx context.Context, n uint64) error {
	v.at = pageBytes
	if there, err := exists(v.j.o.FS, v.j.segs.path(n)); err != nil {
		return err
	} else if !there {
		return v.absent(n, ErrMissingSegment.Error())
	}
	p, ok, err := v.page(n, 0, segmentMagic)
	if err != nil {
		return err
	}
	if first, sure, err := v.j.segmentFirst(n); !ok && (err != nil || sure) {
		if h, _, ferr := v.j.segs.frameAt(n, pageBytes); err != nil || ferr == nil && (h.Epoch != first.Epoch || h.First != first.Seq) {
			return errors.Join(err, v.absent(n, "the file holds another segment"))
		}
	}
	if !ok {
		v.damage(n, 0, "the segment's header is missing or differs from its checksum")
	} else if v.known && v.recent.contradicts(frameHeader{ChainSeq: p.ChainSeq, Chain: p.Chain}) && p.Epoch == v.last.Epoch {
		v.damage(n, 0, "the segment's header names another chain value")
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if n == v.end.Segment && v.at >= v.end.Offset {
			return nil
		}
		h, meta, err := v.j.segs.frameAt(n, v.at)
		if err == nil && h.Identity == v.j.identity && v.later(h) {
			if err := v.frame(ctx, n, h, meta); err != nil {
				return err
			}
			if err := v.read(ctx, h.Bytes); err != nil {
				return err
			}
			continue
		}
		if err = missing(err); err != nil {
			return err
		}
		t, ok, err := v.page(n, v.at, trailerMagic)
		if err != nil {
			return err
		}
		if ok {
			if v.known && t.Seq != v.last.Seq {
				return v.early(n, fmt.Sprintf("the trailer ends at record %d, the segment at %d", t.Seq, v.last.Seq))
			}
			return nil
		}
		if more, err := v.hole(n); err != nil || !more {
			return err
		}
	}
}

// absent reports a segment of which nothing is there.
func (v *verifier) absent(n uint64, what string) error {
	if first, ok, err := v.j.segmentFirst(n); err != nil {
		return err
	} else if ok {
		v.last = Position{first.Epoch, first.Seq - 1}
	}
	d := v.damage(n, 0, what)
	d.class, d.ranges = ErrMissingSegment, []fileRange{{segmentID(n), 0, wholeFile}}
	v.known = false
	next, ok, err := v.j.segmentFirst(n + 1)
	if err == nil && ok {
		v.over(d, next)
	}
	return err
}

// hole reports what lies up to the next frame or trailer; false at the file's end.
func (v *verifier) hole(n uint64) (bool, error) {
	d := v.damage(n, v.at, "no frame that goes on, or one whose header or records differ from their checksum")
	from := v.at
	v.known = false
	more, reach, err := v.skip(n)
	end := max(v.at, reach)
	if !more {
		end = wholeFile
	}
	d.ranges = []fileRange{{segmentID(n), from, end}}
	if h, _, ferr := v.j.segs.frameAt(n, v.at); more && ferr == nil {
		v.over(d, Position{h.Epoch, h.First})
	} else if next, ok, serr := v.j.segmentFirst(n + 1); serr == nil && ok {
		v.over(d, next)
	}
	return more, err
}

// early reports a segment whose trailer stands before its end.
func (v *verifier) early(n uint64, what string) error {
	d := v.damage(n, v.at, what)
	d.ranges, v.known = []fileRange{{segmentID(n), v.at, wholeFile}}, false
	next, ok, err := v.j.segmentFirst(n + 1)
	if err == nil && ok {
		v.over(d, next)
	}
	return err
}

// over goes on behind a damage that ends before next.
func (v *verifier) over(d *DamageError, next Position) {
	if next.Epoch == d.Epoch && next.Seq > d.Seq {
		d.Last = next.Seq - 1
	}
	v.last = Position{next.Epoch, next.Seq - 1}
}

// skip goes to the next page that holds a frame or a trailer; false at the end. Frames
// that begin on the way and are not whole go up to reach: what stands in their midst
// is in their place.
func (v *verifier) skip(n uint64) (more bool, reach int64, _ error) {
	b := make([]byte, pageBytes)
	for {
		v.at += pageBytes
		if n == v.end.Segment && v.at >= v.end.Offset {
			return true, reach, nil
		}
		if err := v.j.segs.readAt(n, b, v.at); err != nil {
			return false, reach, missing(err)
		}
		switch string(b[:4]) {
		case frameMagic:
			h, meta, err := v.j.segs.frameAt(n, v.at)
			if err != nil || h.Identity != v.j.identity {
				continue
			}
			if v.whole(n, h, meta) {
				return true, reach, nil
			}
			reach = max(reach, v.at+h.Bytes)
		case trailerMagic:
			if _, err := v.j.pageOf(n, v.at, trailerMagic); err == nil {
				return true, reach, nil
			}
		}
	}
}

// whole reports that the frame here goes on behind damage and verifies to its last
// byte: a header alone may have been moved. So may a frame; one with the next record
// was, for the damage has cost one at least.
func (v *verifier) whole(n uint64, h frameHeader, meta []byte) bool {
	if !v.later(h) || h.Epoch == v.last.Epoch && h.First == v.last.Seq+1 {
		return false
	}
	rs, err := decodeRecords(h, meta)
	if err != nil {
		return false
	}
	rest := &sectionOf{v.j.segs, n, v.at + int64(len(meta))}
	_, bad, err := frameScan(h, pointers(rs), meta, Chain{}, rest, false, func([]byte, int64) error { return nil })
	return err == nil && bad < 0
}

// later reports that h may go on from what was seen: a payload may hold frames, and
// so may the former life of a recycled segment.
func (v *verifier) later(h frameHeader) bool {
	switch {
	case v.last.Seq == 0:
		return true
	case h.Epoch == v.last.Epoch:
		return h.First > v.last.Seq
	}
	o := v.j.ordinalOf(h.Epoch)
	return o > v.j.ordinalOf(v.last.Epoch)
}

// frame checks a frame whose header and records are right.
func (v *verifier) frame(ctx context.Context, n uint64, h frameHeader, meta []byte) error {
	rs, err := decodeRecords(h, meta)
	if err != nil {
		v.damage(n, v.at, err.Error())
		v.known, v.at = false, v.at+h.Bytes
		return missing(err)
	}
	recs := pointers(rs)
	if err := v.follow(ctx, n, h, recs[0]); err != nil {
		return err
	}
	if v.known && v.recent.contradicts(h) {
		v.damage(n, v.at, fmt.Sprintf("the frame names another chain value after record %d", h.ChainSeq))
	}
	rest := &sectionOf{v.j.segs, n, v.at + int64(len(meta))}
	chain, bad, err := frameScan(h, recs, meta, v.chain, rest, v.j.o.faults.headerOnlyCRC, func([]byte, int64) error { return nil })
	if err != nil && missing(err) != nil {
		return err
	}
	if bad >= 0 || err != nil { // or it is cut short
		if err := v.badRecords(n, h, recs); err != nil {
			return err
		}
		c, ok := v.j.chainNamed(Position{h.Epoch, h.Last}, n, v.at+h.Bytes)
		chain, v.known = c.Chain, ok && c.Seq == h.Last
	}
	if v.frames++; v.frames%comparedFrames == 1 && bad < 0 && err == nil && v.known {
		if err := v.compare(n, h, recs); err != nil {
			return err
		}
	}
	v.chain, v.last, v.at = chain, Position{h.Epoch, h.Last}, v.at+h.Bytes
	if v.known {
		v.recent.push(Cursor{v.last, chain})
	}
	return nil
}

// badRecords reports each record of a frame whose stored bytes differ from its
// checksums, cell by cell; where none does, the bytes beside them are what is wrong.
func (v *verifier) badRecords(n uint64, h frameHeader, recs []*record) error {
	cells, err := cellsIn(recs)
	if err != nil {
		return missing(err)
	}
	var d *DamageError
	rec := -1
	buf := make([]byte, pageBytes)
	for _, c := range cells {
		p := buf[:c.end-c.at]
		if err := v.j.segs.readAt(n, p, v.at+c.at); missing(err) != nil {
			return err
		} else if err == nil && checksum(p) == c.crc {
			continue
		}
		if d == nil || rec != c.rec {
			r := recs[c.rec]
			d, rec = v.damage(n, v.at+r.payload, damagedBytes), c.rec
			d.Epoch, d.Seq, d.Volume = h.Epoch, h.First+Seq(c.rec), v.j.volumeOf(r.volume)
		}
		d.ranges = append(d.ranges, fileRange{segmentID(n), v.at + c.at, v.at + c.end})
	}
	if d == nil {
		d = v.damage(n, v.at, "bytes beside the payloads are set, or the frame is cut short")
		d.Epoch, d.Seq, d.Last = h.Epoch, h.First, h.Last
	}
	return nil
}

// compare holds the index to what a frame's records say.
func (v *verifier) compare(n uint64, h frameHeader, recs []*record) error {
	ordinal := v.j.ordinalOf(h.Epoch)
	v.j.mu.Lock()
	behind := int(ordinal) == len(v.j.branches) && h.Last > v.j.indexed
	v.j.mu.Unlock()
	if behind || v.j.history().folded(order{ordinal, h.First}) {
		return nil
	}
	unfolded, err := v.j.unfolded()
	if err != nil {
		return err
	}
	for i, r := range recs {
		if !r.kind.hasExtent() || ordinal == 0 || v.j.o.faults.keyWithoutEpoch {
			continue
		}
		differs := false
		err := indexRecord(r, ordinal, h.First+Seq(i), n, v.at, func(k, want []byte) error {
			got, closer, err := v.j.db.Get(k)
			if errors.Is(err, pebble.ErrNotFound) {
				differs = differs || unfolded
				return nil
			}
			if err != nil {
				return fmt.Errorf("read index: %w", err)
			}
			if !bytes.Equal(got, want) { // a fold leaves the key and moves the place
				p, err := decodePlace(got, int(k[5]))
				differs = differs || unfolded || err != nil || !p.file.isRun()
			}
			return closer.Close()
		})
		if err != nil {
			return err
		}
		if differs && !v.j.history().folded(order{ordinal, h.First}) { // by now
			d := v.damage(n, v.at, "the index says something else of the record; it is built anew at the next opening")
			d.File, d.Epoch, d.Seq, d.file = "index", h.Epoch, h.First+Seq(i), 0
			d.Volume = v.j.volumeOf(r.volume)
			v.j.markIndexStale("an entry differs from its record")
			return nil
		}
	}
	return nil
}

// unfolded reports that no history was ever folded here: every record has its entries.
func (j *Journal) unfolded() (bool, error) {
	there, err := exists(j.o.FS, j.o.FS.PathJoin(j.dir, "runs"))
	if err != nil || !there {
		return err == nil, err
	}
	names, err := j.o.FS.List(j.o.FS.PathJoin(j.dir, "runs"))
	return len(names) == 0, err
}

// follow checks that a frame goes on from the last one and sets the chain value
// before it.
func (v *verifier) follow(ctx context.Context, n uint64, h frameHeader, first *record) error {
	if v.known && v.last.Seq > 0 {
		v.inOrder(n, h)
	}
	if sm, ok, err := v.j.sampleBefore(ctx, v.j.ordinalOf(h.Epoch), h.First); err != nil {
		return err
	} else if ok && sm.segment == n && sm.offset == v.at && !sm.before.unknown(h.First) {
		if v.known && h.Epoch == v.last.Epoch && sm.before != v.chain {
			v.damage(n, v.at, "the index names another chain value before the frame")
		}
		if !v.known || h.Epoch != v.last.Epoch {
			v.recent = recentFrom(Cursor{Position{h.Epoch, h.First - 1}, sm.before})
		}
		v.chain, v.known = sm.before, true
	}
	if first.kind == KindEpoch {
		var e Epoch
		if err := decodeBody(first.body, &e); err != nil {
			v.damage(n, v.at, "the epoch's record does not read")
			return nil
		}
		v.chain, v.known, v.recent = e.Parent.Chain, true, recentFrom(e.Parent)
		return nil
	}
	return nil
}

// inOrder reports records that are missing between the last frame and this one: it was
// moved here. A frame of another epoch follows the last one that the epoch before it has.
func (v *verifier) inOrder(n uint64, h frameHeader) {
	ends := v.last.Seq
	if h.Epoch != v.last.Epoch {
		v.j.mu.Lock()
		if o := v.j.ordinalLocked(v.last.Epoch); o > 0 {
			ends = v.j.branches[o-1].Last.Seq
		}
		v.j.mu.Unlock()
	}
	var d *DamageError
	switch {
	case h.Epoch == v.last.Epoch && h.First != ends+1:
		d = v.damage(n, v.at, fmt.Sprintf("record %d follows record %d", h.First, ends))
	case h.Epoch != v.last.Epoch && ends > v.last.Seq:
		d = v.damage(n, v.at, fmt.Sprintf("epoch %s follows record %d of %d", h.Epoch.Short(), v.last.Seq, ends))
		d.Last = ends
	default:
		return
	}
	d.ranges = []fileRange{{segmentID(n), v.at, wholeFile}} // where else its cells point is not known
}
