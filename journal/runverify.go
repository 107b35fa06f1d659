package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/zeebo/blake3"
)

// runs checks every byte of the runs: pages, tail, blocks, and the leaves of the
// BLAKE3 tree that the site log holds the root of. What is damaged is named by the
// versions that lie there, where they can be told.
func (v *verifier) runs(ctx context.Context, p *folds) error {
	for _, m := range p.state.Runs {
		var d *DamageError
		r, err := v.tail(m)
		if err == nil && r != nil {
			err = v.run(ctx, r)
		}
		if err != nil && v.j.merged(m) {
			continue
		}
		switch {
		case errors.As(err, &d):
			d.Hop = "verify"
			if there, err := exists(v.j.o.FS, v.j.runs.path(m.Run)); err != nil {
				return err
			} else if !there { // else what a read needs of it is judged by the read
				d.file, d.ranges = runID(m.Run), []fileRange{{runID(m.Run), 0, wholeFile}}
			}
			v.found = append(v.found, *d)
		case err != nil:
			return fmt.Errorf("verify run %s: %w", runName(m.Run), err)
		}
	}
	return nil
}

// tail opens a run; what is wrong with its own tail is reported, and the copy says what
// its leaves must be. nil: its file is not there.
func (v *verifier) tail(m manifest) (*run, error) {
	r, err := v.j.openRunItself(m)
	if err == nil || !unreadable(err) {
		return r, err
	}
	if v.j.merged(m) {
		return nil, nil
	}
	d, ferr := v.j.lameDamage(m, err)
	if ferr != nil {
		return nil, ferr
	}
	d.Hop = "verify"
	v.found = append(v.found, d)
	if r, ok := v.j.tailCopy(m); ok && len(d.ranges) == 0 {
		return r, nil
	}
	return nil, nil
}

// merged reports that the site log lists a run no more.
func (j *Journal) merged(m manifest) bool {
	return !slices.ContainsFunc(j.history().state.Runs, func(o manifest) bool { return o.Run == m.Run })
}

// run compares a run's leaves and names what lies in those that differ.
func (v *verifier) run(ctx context.Context, r *run) error {
	leaves := r.leaves()
	buf := make([]byte, leafBytes)
	var bad []int64 // leaves
	for i := range r.page.Leaves {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(leafBytes, r.page.Body-i*leafBytes)]
		if err := v.pause(ctx, int64(len(b))); err != nil {
			return err
		}
		err := v.j.runs.readAt(r.number, b, i*leafBytes)
		if err = r.damageOf(i*leafBytes, err); err != nil && !unreadable(err) {
			return err
		}
		if err != nil || blake3.Sum256(b) != Chain(leaves[i*32:][:32]) {
			bad = append(bad, i)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	return v.nameInRun(r, bad)
}

// nameInRun adds the damaged versions of a run to what was found; for a leaf with
// none, the leaf.
func (v *verifier) nameInRun(r *run, bad []int64) error {
	named := make(map[int64]bool)
	in := func(off, n int64) (int64, bool) {
		for _, l := range bad {
			if off < (l+1)*leafBytes && off+n > l*leafBytes {
				return l, true
			}
		}
		return 0, false
	}
	var buf []byte
	err := r.each(blockVersions, func(k, val []byte) error {
		e, err := decodeIndexKey(k)
		if err != nil {
			return badFrame("%v", err)
		}
		p, err := decodePlace(val, e.node.level)
		if err != nil {
			return badFrame("%v", err)
		}
		n := p.storedBytes()
		l, hit := in(p.offset, n)
		if n == 0 || !hit {
			return nil
		}
		if int64(cap(buf)) < n {
			buf = make([]byte, n)
		}
		err = r.damageOf(p.offset, v.j.runs.readAt(r.number, buf[:n], p.offset))
		if err != nil && !unreadable(err) || err == nil && p.intact(buf[:n]) {
			return err
		}
		named[l] = true
		d := DamageError{Hop: "verify", Volume: v.j.volumeOf(e.volume), Seq: e.seq, File: runName(r.number), Offset: p.offset, What: cellDiffers,
			file: runID(r.number), ranges: []fileRange{{runID(r.number), p.offset, p.offset + n}}}
		v.j.mu.Lock()
		if int(e.ordinal) <= len(v.j.branches) {
			d.Epoch = v.j.branches[e.ordinal-1].ID
		}
		v.j.mu.Unlock()
		v.found = append(v.found, d)
		return nil
	})
	for _, l := range bad {
		if named[l] {
			continue
		}
		d := DamageError{Hop: "verify", File: runName(r.number), Offset: l * leafBytes, What: "a part of the run differs from its hash"}
		if err != nil { // the blocks do not say what lies there; the index does
			d.file, d.ranges = runID(r.number), []fileRange{{runID(r.number), l * leafBytes, (l + 1) * leafBytes}}
		}
		v.found = append(v.found, d)
	}
	return err
}
