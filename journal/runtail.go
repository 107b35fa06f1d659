package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
)

// Without its tail a run is bytes that nobody can name: which points it keeps, where
// its blocks lie, what its leaves must hash to. So the index has a copy of it, which
// proves itself by the root in the site log, wherever it comes from:
//
//	'c' | run 8 | part 4  →  footer page | directory | points | leaves, cut into parts
//
// A run whose own tail is damaged, or whose file is not there, goes by its copy: the
// journal opens, the index names the places of what it holds, each read verifies what
// it gets or says what is damaged, and a repair writes the run again as it was. With
// no copy the points that the run keeps are not known: they are not listed, and asking
// for one says which run is damaged.
//
// The copy goes with the index. So an index is not given up while a run is damaged
// that could not be put into a new one (ErrRunLost).

// runTail is the end of a run's file: from its body on.
type runTail struct {
	footer []byte // a page
	tail   []byte // without padding
}

const tailPart = 1 << 20

func tailKey(run uint64, part uint32) []byte {
	b := binary.BigEndian.AppendUint64([]byte{prefixTail}, run)
	return binary.BigEndian.AppendUint32(b, part)
}

// keepTail puts the copy of a run's tail into a batch.
func keepTail(b *pebble.Batch, r *run) error {
	all := append(slices.Clone(r.raw.footer), r.raw.tail...)
	for i := uint32(0); len(all) > 0; i++ {
		n := min(len(all), tailPart)
		if err := b.Set(tailKey(r.number, i), all[:n], nil); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// forgetTail takes the copy of the tail of a run that is gone out of the index.
func forgetTail(b *pebble.Batch, n uint64) error {
	return b.DeleteRange(tailKey(n, 0), tailKey(n+1, 0), nil)
}

// tailCopy is the run of a manifest as the copy of its tail says; false where there is
// none that proves itself.
func (j *Journal) tailCopy(m manifest) (*run, bool) {
	j.mu.Lock()
	r := j.copies[m.Run]
	j.mu.Unlock()
	if r != nil && r.page.Root == m.Root {
		return r, true
	}
	if j.db == nil {
		return nil, false
	}
	var all []byte
	err := j.scanRange(tailKey(m.Run, 0), tailKey(m.Run+1, 0), func(_, v []byte) error {
		all = append(all, v...)
		return nil
	})
	if err != nil || len(all) < pageBytes {
		return nil, false
	}
	r = &run{j: j, number: m.Run}
	if err := r.decode(runTail{all[:pageBytes], all[pageBytes:]}, m.Bytes); err != nil || r.page.Root != m.Root {
		return nil, false
	}
	return r, true
}

// unreadable reports that err means bytes of a file that are damaged or gone, or that
// the disk does not give.
func unreadable(err error) bool {
	var d *DamageError
	return errors.As(err, &d) || errors.Is(err, syscall.EIO)
}

// lame is a run whose own tail does not read.
type lame struct {
	m    manifest
	why  error
	copy bool // its copy does
}

// loadKept reads which points the runs keep. It goes on without what a damaged run
// cannot say.
func (j *Journal) loadKept() error {
	s := j.past.state
	p := &folds{state: s, to: s.to()}
	for _, m := range s.Runs {
		r, err := j.openRunItself(m)
		if err != nil {
			if !unreadable(err) {
				return err
			}
			var ok bool
			r, ok = j.tailCopy(m)
			p.lame = append(p.lame, lame{m, err, ok})
			j.o.Log.Error("damaged run found at open; what does not lie in it stays usable", "dir", j.dir, "run", runName(m.Run), "copy", ok, "err", err)
			if !ok {
				continue
			}
			j.copies[m.Run] = r // a new index would not have it
		}
		dropped, err := decodeBits(m.Dropped, len(r.points))
		if err != nil {
			return &DamageError{Hop: "open", File: siteLogName, What: fmt.Sprintf("points of run %d: %v", m.Run, err)}
		}
		for i, pt := range r.points {
			if !dropped[i] {
				p.kept = append(p.kept, pt)
			}
		}
		if pt, ok := m.endPoint(); ok {
			p.kept = append(p.kept, pt)
		}
	}
	j.past = p
	return nil
}

// silent is the damage of a run that holds o in its range, and of which it is not
// known whether it keeps o; nil where there is none.
func (p *folds) silent(o order) error {
	for _, l := range p.lame {
		if !l.copy && o.after(l.m.After) && !o.after(l.m.To) {
			return &DamageError{Hop: "open", Epoch: l.m.Last.Epoch, Seq: o.Seq, File: runName(l.m.Run), Offset: l.m.Bytes - pageBytes,
				What: "the run's table is damaged, and the index has no copy: which points it keeps is not known"}
		}
	}
	return nil
}

func (j *Journal) silentAt(p Position) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.past.silent(j.orderLocked(p))
}

// stillLame is what of the damaged runs is in s.
func (s *runState) stillLame(ls []lame) []lame {
	return slices.DeleteFunc(slices.Clone(ls), func(l lame) bool {
		return !slices.ContainsFunc(s.Runs, func(m manifest) bool { return m.Run == l.m.Run })
	})
}

// canRebuild reports whether all runs could be put into a new index: their tails and
// blocks verify. ErrRunLost names the first that does not.
func (j *Journal) canRebuild() error {
	for _, m := range j.past.state.Runs {
		if err := j.canTake(m); err != nil {
			return err
		}
	}
	return nil
}

// canTake reports whether one run could be put into a new index.
func (j *Journal) canTake(m manifest) error {
	r, err := j.openRun(m)
	if err == nil {
		err = errors.Join(r.each(blockVersions, ignorePair), r.each(blockCatalogue, ignorePair))
	}
	if err != nil && unreadable(err) {
		return fmt.Errorf("%w: %w", ErrRunLost, err)
	}
	return err
}

func ignorePair(_, _ []byte) error { return nil }

// settleTails makes the index hold a copy of every run's tail, and the journal
// remember the runs that were found damaged at open.
func (j *Journal) settleTails() error {
	for _, m := range j.past.state.Runs {
		_, closer, err := j.db.Get(tailKey(m.Run, 0))
		if err == nil {
			err = closer.Close()
		} else if errors.Is(err, pebble.ErrNotFound) {
			err = j.copyTail(m)
		}
		if err != nil {
			return fmt.Errorf("copy tail of run %s: %w", runName(m.Run), err)
		}
	}
	if err := j.copySiteLog(j.db); err != nil {
		return err
	}
	var found []DamageError
	for _, l := range j.past.lame {
		known := slices.ContainsFunc(j.damages, func(d Damage) bool { return d.File == runName(l.m.Run) })
		if !known {
			d, err := j.lameDamage(l.m, l.why)
			if err != nil {
				return err
			}
			found = append(found, d)
		}
	}
	if len(found) == 0 {
		return nil
	}
	ds := j.damagesOf(found)
	if err := j.findCells(ds); err != nil {
		return err
	}
	j.damages = append(j.damages, ds...)
	if err := j.site.remember(damageKey, j.damages); err != nil {
		j.o.Log.Warn("damage not remembered", "err", err) // it is found again
	}
	return nil
}

func (j *Journal) copyTail(m manifest) error {
	r, err := j.openRun(m)
	if err != nil {
		if unreadable(err) {
			return nil
		}
		return err
	}
	b := j.db.NewBatch()
	if err = keepTail(b, r); err == nil {
		err = b.Commit(pebble.NoSync)
	}
	return errors.Join(err, b.Close())
}

// lameDamage is the damage of a run whose tail does not read. Of a file that is not
// there everything is; else what a read needs of it is judged by the read.
func (j *Journal) lameDamage(m manifest, why error) (DamageError, error) {
	d := DamageError{Hop: "open", Epoch: m.First.Epoch, Seq: m.First.Seq, File: runName(m.Run), Offset: m.Bytes - pageBytes, What: why.Error()}
	var named *DamageError
	if errors.As(why, &named) {
		d.Offset, d.What = named.Offset, named.What
	}
	there, err := exists(j.o.FS, j.runs.path(m.Run))
	if !there && err == nil {
		d.What, d.Offset = "the run's file is missing", 0
		d.file, d.ranges = runID(m.Run), []fileRange{{runID(m.Run), 0, wholeFile}}
	}
	return d, err
}
