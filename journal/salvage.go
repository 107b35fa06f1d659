package journal

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A journal that holds less than was durable does not open (IsLoss): a person must
// know. Options.AcceptLoss is that person's word. The opening then cuts the log where
// it last verifies and goes on from there:
//
//  1. the evidence goes into the site log: what was found, where, when;
//  2. later segments, highest first, and the cut one's bytes move to lost/;
//  3. the cut segment is replaced by a copy that ends at the cut;
//  4. the anchor of the last clean close becomes the new end;
//  5. the index is built anew.
//
// Where a run is lost, salvageruns.go cuts instead. Nothing is deleted. A crash between the steps leaves a journal that refuses again,
// or one that is cut already. A peer that holds what was cut gives it back: to a
// replica as ordinary frames, to a primary as a branch.

// lostDir is where cut bytes are kept.
const lostDir = "lost"

const lossesKey = "journal/losses"

// Loss is one acceptance of a loss.
type Loss struct {
	Time  time.Time `json:"time"`
	After Position  `json:"after"` // the last record that is left
	Known Position  `json:"known"` // the newest that is known to have been durable; zero: not known
	Cause string    `json:"cause"`
	Kept  []string  `json:"kept"`           // files in lost/
	Said  bool      `json:"said,omitempty"` // a gap says so in the history
}

// Losses is every loss that was accepted here, oldest first.
func (j *Journal) Losses() ([]Loss, error) {
	var ls []Loss
	_, err := j.site.recall(lossesKey, &ls)
	return ls, err
}

// acceptLoss cuts the log where it last verifies; cause is why it does not open.
func (j *Journal) acceptLoss(cause error) error {
	if err := j.checkListed(j.past.state); err != nil {
		return fmt.Errorf("%w; %w", cause, err)
	}
	var known Cursor
	if _, err := j.site.recall(anchorKey, &known); err != nil {
		return err
	}
	if j.ordinalOf(j.through.Durable.Epoch) > 0 && j.through.Durable.Seq > known.Seq {
		known = j.through.Durable.Cursor
	}
	if err := j.resetIndex(); err != nil {
		return err
	}
	err := j.replayTail() // from the beginning: what the index knew is not to be had
	if err != nil && !IsLoss(err) {
		return err
	}
	broken := err != nil
	at := j.through.frameEnd
	if at.Segment == 0 {
		at.Segment, at.Offset = 1, pageBytes
	}
	l := Loss{Time: j.o.Now(), After: at.Position, Known: known.Position, Cause: cause.Error()}
	if broken {
		if l.Kept, err = j.lostFiles(at); err != nil {
			return err
		}
	}
	ls, err := j.Losses()
	if err != nil {
		return err
	}
	if err := j.site.remember(lossesKey, append(ls, l)); err != nil {
		return err
	}
	if broken { // else it is whole, but of an earlier time
		if err := j.cutAt(at); err != nil {
			return fmt.Errorf("cut journal: %w", err)
		}
	}
	if err := j.site.remember(anchorKey, at.Cursor); err != nil {
		return err
	}
	if err := j.resetIndex(); err != nil {
		return err
	}
	j.o.Log.Error("loss accepted", "dir", j.dir, "after", at.Position.String(), "cause", cause, "kept", l.Kept)
	return j.replayTail()
}

// lostFiles names the files that a cut at at puts into lost/.
func (j *Journal) lostFiles(at frameEnd) ([]string, error) {
	ns, err := j.segmentList()
	var out []string
	for _, n := range ns {
		if n >= at.Segment {
			out = append(out, j.lostName(segmentName(n)))
		}
	}
	return out, err
}

// lostName is what a file is called in lost/: a name that is free there.
func (j *Journal) lostName(file string) string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s.%d", file, i)
		if there, err := exists(j.o.FS, j.o.FS.PathJoin(j.dir, lostDir, name)); err != nil || !there {
			return name
		}
	}
}

// cutAt keeps what lies behind at aside and ends the log there.
func (j *Journal) cutAt(at frameEnd) error {
	fs, dir := j.o.FS, j.o.FS.PathJoin(j.dir, lostDir)
	if err := makeDir(fs, dir); err != nil {
		return err
	}
	ns, err := j.segmentList()
	if err != nil {
		return err
	}
	for i := len(ns) - 1; i >= 0 && ns[i] > at.Segment; i-- {
		if err := fs.Rename(j.segs.path(ns[i]), fs.PathJoin(dir, j.lostName(segmentName(ns[i])))); err != nil {
			return err
		}
		j.segs.drop(ns[i])
	}
	if err := errors.Join(syncDir(fs, dir), syncDir(fs, j.segs.dir)); err != nil {
		return err
	}
	there, err := exists(fs, j.segs.path(at.Segment))
	if err != nil || !there {
		return err
	}
	if at.Offset <= pageBytes { // nothing of it is left
		if err := fs.Rename(j.segs.path(at.Segment), fs.PathJoin(dir, j.lostName(segmentName(at.Segment)))); err != nil {
			return err
		}
		j.segs.drop(at.Segment)
		return errors.Join(syncDir(fs, dir), syncDir(fs, j.segs.dir))
	}
	if err := fs.Link(j.segs.path(at.Segment), fs.PathJoin(dir, j.lostName(segmentName(at.Segment)))); err != nil {
		return err
	}
	if err := syncDir(fs, dir); err != nil {
		return err
	}
	return j.replaceFile(j.segs, at.Segment, func(w io.WriterAt) error { return j.copySegment(w, at.Segment, at.Offset) })
}

// copySegment copies the first n bytes of a segment; the rest of the copy is zeros,
// up to its old length.
func (j *Journal) copySegment(w io.WriterAt, number uint64, n int64) error {
	size, err := j.segs.size(number)
	if err != nil {
		return err
	}
	buf := make([]byte, scanBytes)
	for at := int64(0); at < size; {
		p := buf[:min(int64(len(buf)), size-at)]
		clear(p)
		if at < n {
			part := p[:min(int64(len(p)), n-at)]
			if err := j.segs.readAt(number, part, at); err != nil {
				return err
			}
		}
		if _, err := w.WriteAt(p, at); err != nil {
			return err
		}
		at += int64(len(p))
	}
	return nil
}

// replaceFile puts a new file in the place of segment or run n, durably, and swaps it
// under the readers: nothing is edited in place.
func (j *Journal) replaceFile(set *segments, n uint64, write func(io.WriterAt) error) error {
	if err := j.writeAside(set, n, write); err != nil {
		return err
	}
	return j.takePlace(set, n)
}

// asideSuffix is added to the name of a file that is to take another's place. What a
// crash leaves of it goes at the next opening.
const asideSuffix = ".new"

// writeAside writes and syncs the new file.
func (j *Journal) writeAside(set *segments, n uint64, write func(io.WriterAt) error) error {
	fs, tmp := j.o.FS, set.path(n)+asideSuffix
	if err := fs.Remove(tmp); err != nil && !notThere(err) {
		return err
	}
	f, err := fs.OpenReadWrite(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fullOr(err)
	}
	err = write(f)
	if err == nil {
		err = synced(f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fullOr(errors.Join(err, fs.Remove(tmp)))
	}
	return nil
}

// takePlace puts the new file in the old one's place.
func (j *Journal) takePlace(set *segments, n uint64) error {
	if err := j.o.FS.Rename(set.path(n)+asideSuffix, set.path(n)); err != nil {
		return err
	}
	set.drop(n)
	return syncDir(j.o.FS, set.dir)
}
