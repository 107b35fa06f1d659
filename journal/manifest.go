package journal

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"
)

// manifest is what the site log says of a run. It is durable before the index names
// the run, and before anything that went into the run is given back.
type manifest struct {
	Run    uint64 `json:"run"`
	Bytes  int64  `json:"bytes"` // of the file
	Root   Chain  `json:"root"`
	After  order  `json:"after"` // its range of history: after this record
	To     order  `json:"to"`    // up to this one
	Points int    `json:"points"`
	// Dropped has a bit for each point in the file that is kept no more (base64);
	// Garbage is the stored bytes that only they needed.
	Dropped string `json:"dropped,omitempty"`
	Garbage int64  `json:"garbage,omitempty"`
	// In and Out are the chain values before and after the range, First and Last the
	// records that it begins and ends with.
	In    Chain    `json:"in"`
	Out   Chain    `json:"out"`
	First Position `json:"first"`
	Last  Position `json:"last"`
	// Ends is the time of Last where a loss was cut off behind it (salvageruns.go), and
	// the image there is a point that the file does not list; nil: it is none.
	Ends *time.Time `json:"ends,omitempty"`
}

// endPoint is the point that Ends makes.
func (m *manifest) endPoint() (runPoint, bool) {
	if m.Ends == nil {
		return runPoint{}, false
	}
	return runPoint{order: m.To, time: *m.Ends, chain: m.Out}, true
}

// change is the newest change of the runs, until what went into it is given back.
type change struct {
	Run      uint64   `json:"run"`
	Runs     []uint64 `json:"runs,omitempty"`      // that were merged
	RunBytes int64    `json:"run_bytes,omitempty"` // of those files
	Segments []uint64 `json:"segments,omitempty"`  // first and last that were folded
	After    order    `json:"after"`               // the range whose index entries change
	To       order    `json:"to"`
}

// runState is all that the site log says of folded history, as one value: it changes
// as a whole or not at all.
type runState struct {
	Next uint64     `json:"next"` // number of the next run, never given before
	Runs []manifest `json:"runs"` // oldest first; their ranges follow on one another
	// End is where folded history ends: the next frame lies at the start of segment
	// End.Segment and must chain on to End.Chain. Recent is the chain values before.
	End    frameEnd `json:"end"`
	Recent []Cursor `json:"recent,omitempty"`
	Change *change  `json:"change,omitempty"`
	Given  int64    `json:"given"` // bytes of the frames whose segments are given back
	// Swapped is the run of the last change that the index had taken in whole before
	// anything was given back: an index that has not is built anew.
	Swapped uint64 `json:"swapped"`
}

const runStateKey = "journal/runs"

// maxStateRecent bounds runState.Recent: a frame's header names a chain value no
// further back than the pipeline is deep.
const maxStateRecent = 64

// floor is the first segment that is not folded.
func (s *runState) floor() uint64 { return max(s.End.Segment, 1) }

func (s *runState) to() order {
	if len(s.Runs) == 0 {
		return order{}
	}
	return s.Runs[len(s.Runs)-1].To
}

// bytes is what runs take on disk.
func (s *runState) bytes() int64 {
	var n int64
	for _, m := range s.Runs {
		n += m.Bytes
	}
	if s.Change != nil {
		n += s.Change.RunBytes
	}
	return n
}

// check refuses a value that cannot be right: ranges must follow on one another.
func (s *runState) check() error {
	at, chain := order{}, Chain{}
	for _, m := range s.Runs {
		if m.After != at || !m.To.after(at) || m.Run >= s.Next || m.Bytes < 3*pageBytes || m.In != chain {
			return &DamageError{Hop: "open", File: siteLogName, What: fmt.Sprintf("run %d does not follow on the one before", m.Run)}
		}
		at, chain = m.To, m.Out
	}
	if len(s.Runs) > 0 && (s.End.Chain != chain || s.End.Segment == 0 || s.End.Seq != at.Seq) {
		return &DamageError{Hop: "open", File: siteLogName, What: "the end of folded history is not that of its last run"}
	}
	return nil
}

// retained is what a journal knows of folded history. Journal.mu guards it.
type retained struct {
	past      *folds
	doom      *doomed           // what a fold under way takes away; nil: nothing
	users     map[Position]int  // views and the like that are open, by what they show
	runLevels map[uint32]uint16 // levels that runs brought into use, by volume
	copies    map[uint64]*run   // of damaged runs, as the copies of their tails say
}

func newRetained() retained {
	return retained{past: &folds{}, users: make(map[Position]int), runLevels: make(map[uint32]uint16), copies: make(map[uint64]*run)}
}

// folds is folded history as the readers see it. It is immutable: a new one takes its
// place. The zero value is a journal of which nothing is folded.
type folds struct {
	state runState
	to    order      // the last folded record
	kept  []runPoint // points that are kept, in order
	lame  []lame     // runs that were found damaged at open
}

func (p *folds) keeps(o order) (runPoint, bool) {
	i := sort.Search(len(p.kept), func(i int) bool { return !o.after(p.kept[i].order) })
	if i < len(p.kept) && p.kept[i].order == o {
		return p.kept[i], true
	}
	return runPoint{}, false
}

// folded reports that o is a record of folded history.
func (p *folds) folded(o order) bool { return o.Ordinal > 0 && !o.after(p.to) }

// loadPast reads what the site log says of folded history. Which points are kept is in
// the runs (loadKept).
func (j *Journal) loadPast() error {
	var s runState
	if _, err := j.site.recall(runStateKey, &s); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	j.past = &folds{state: s, to: s.to()}
	if s.Change == nil {
		j.segs.giveBack(s.floor())
	}
	return nil
}

// removeStrays removes what a crash left unfinished: runs that no manifest names, files
// that were to take another's place, segments that are folded and given back. It comes
// last in an opening, when nothing says any more that the site log is of an
// earlier time, or not there: then the run would be all that is left of its range.
func (j *Journal) removeStrays() error {
	s := j.past.state
	if err := errors.Join(j.removeAside(j.segs), j.removeAside(j.runs), j.removeFolded(s)); err != nil {
		return err
	}
	stray, err := j.strayRuns(s)
	if err != nil || len(stray) == 0 {
		return err
	}
	for _, n := range stray {
		if len(j.branches) == 0 && j.isRun(n) { // nothing says that it is not all that is left
			if err := j.moveLost([]string{j.runs.path(n)}, []string{j.lostName(runName(n))}); err != nil {
				return fmt.Errorf("keep run aside: %w", err)
			}
			j.o.Log.Warn("a whole run that the site log does not list is kept in lost/", "dir", j.dir, "run", runName(n))
			continue
		}
		if err := j.o.FS.Remove(j.runs.path(n)); err != nil {
			return fmt.Errorf("remove unfinished run: %w", err)
		}
	}
	return syncDir(j.o.FS, j.runs.dir)
}

// removeAside removes what was to take a file's place.
func (j *Journal) removeAside(set *segments) error {
	names, err := j.o.FS.List(set.dir)
	for _, name := range names {
		if strings.HasSuffix(name, asideSuffix) {
			err = errors.Join(err, j.o.FS.Remove(j.o.FS.PathJoin(set.dir, name)))
		}
	}
	if err != nil {
		return fmt.Errorf("remove unfinished file: %w", err)
	}
	return nil
}

// removeFolded removes segments that a finished change has given back.
func (j *Journal) removeFolded(s runState) error {
	ns, err := j.segmentList()
	for _, n := range ns {
		if n < s.floor() && s.Change == nil {
			err = errors.Join(err, j.o.FS.Remove(j.segs.path(n)))
		}
	}
	if err != nil {
		return fmt.Errorf("remove folded segment: %w", err)
	}
	return nil
}

// strayRuns is the files of runs that s does not name.
func (j *Journal) strayRuns(s runState) ([]uint64, error) {
	names, err := j.o.FS.List(j.runs.dir)
	if err != nil {
		return nil, fmt.Errorf("list runs: %w", err)
	}
	var out []uint64
	for _, name := range names {
		n, ok := parseRunName(name)
		known := slices.ContainsFunc(s.Runs, func(m manifest) bool { return m.Run == n }) || (s.Change != nil && slices.Contains(s.Change.Runs, n))
		if ok && !known {
			out = append(out, n)
		}
	}
	return out, nil
}

// isRun reports that the file of run n is whole, as far as its own footer says.
func (j *Journal) isRun(n uint64) bool {
	size, err := j.runs.size(n)
	if err != nil || size < 3*pageBytes {
		return false
	}
	_, err = j.openRunFile(n, size)
	return err == nil
}

func encodeBits(bits []bool) string {
	b := make([]byte, (len(bits)+7)/8)
	any := false
	for i, set := range bits {
		if set {
			b[i/8] |= 1 << (i % 8)
			any = true
		}
	}
	if !any {
		return ""
	}
	return base64.StdEncoding.EncodeToString(b)
}

func decodeBits(s string, n int) ([]bool, error) {
	bits := make([]bool, n)
	if s == "" {
		return bits, nil
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, err
	}
	if len(b) != (n+7)/8 {
		return nil, errors.New("a bit map of another length")
	}
	for i := range bits {
		bits[i] = b[i/8]&(1<<(i%8)) != 0
	}
	return bits, nil
}

// orderLocked is p's place in the journal's order; the zero order when its epoch is
// not held.
func (j *Journal) orderLocked(p Position) order { return order{j.ordinalLocked(p.Epoch), p.Seq} }

func (j *Journal) orderOf(p Position) order {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.orderLocked(p)
}

// history is folded history as of now.
func (j *Journal) history() *folds {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.past
}

// reclaimedAt is the error for a record that is gone as it was written.
func (j *Journal) reclaimedAt(at Position) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return &ReclaimedError{At: at, From: j.framesFromLocked()}
}

// framesFromLocked is the first record of the head's lineage behind folded history.
func (j *Journal) framesFromLocked() Position {
	for _, i := range j.lineage {
		o := j.ordinalLocked(i.Epoch)
		if o == j.past.to.Ordinal && i.Last > j.past.to.Seq {
			return Position{i.Epoch, max(i.First, j.past.to.Seq+1)}
		}
		if o > j.past.to.Ordinal {
			return Position{i.Epoch, i.First}
		}
	}
	return Position{}
}

// doomed is what a fold that is under way will leave of the history up to a record.
type doomed struct {
	to   order
	keep map[order]bool
}

// mayOpenLocked reports that a view, a pin or a fork may begin to use the image at
// o: it is there, and nothing under way takes it away.
func (j *Journal) mayOpenLocked(o order) bool {
	if _, kept := j.past.keeps(o); j.past.folded(o) && !kept {
		return false
	}
	return j.doom == nil || o.after(j.doom.to) || j.doom.keep[o]
}

// use counts a user of the image at p, or says that it is gone.
func (j *Journal) use(p Position) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if o := j.orderLocked(p); !j.mayOpenLocked(o) {
		if err := j.past.silent(o); err != nil {
			return err
		}
		return &ReclaimedError{At: p, From: j.framesFromLocked()}
	}
	j.users[p]++
	return nil
}

// leave ends one use of the image at p.
func (j *Journal) leave(p Position) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.users[p]--; j.users[p] <= 0 {
		delete(j.users, p)
	}
}

// usersLocked is a reference for every image that is in use.
func (j *Journal) usersLocked() []Reference {
	var out []Reference
	for p := range j.users {
		out = append(out, Reference{Kind: ReferenceView, At: p})
	}
	return out
}

// keptPoint is what is known of a kept point of folded history.
func (j *Journal) keptPoint(p Position) (pt runPoint, folded, kept bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	o := j.orderLocked(p)
	pt, kept = j.past.keeps(o)
	return pt, j.past.folded(o), kept
}
