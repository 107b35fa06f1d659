package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// No peer has the site log, so the index has a copy of its values: as of the newest
// change of the runs, before anything was given back for it, and of the clean close.
//
//	'e'  →  JSON: number of the newest entry, values
//
// A log that is damaged in the middle is put together from what verifies of it and the
// copy. Where the copy is as new as the newest entry that is lost nothing is, and the
// opening goes on. Else it refuses (ErrSiteLogLost), as it does where the log is older
// than what the index has seen of it (ErrRolledBack), until a person accepts the loss
// (Options.AcceptLoss): what is newest of each value counts then, and because a pin or a
// peer's cursor may be missing Maintain thins nothing until a person has looked
// (Maintenance.TrustSiteLog). The damaged file is kept in lost/.

// SiteLogLoss is what the acceptance of a damaged site log has left unknown.
type SiteLogLoss struct {
	Time  time.Time `json:"time"`
	Cause string    `json:"cause"`
	// Older names the values that may be of an earlier time. Others may be missing.
	Older []string `json:"older"`
	Kept  string   `json:"kept"` // the damaged file, in lost/
}

// siteLossKey is where the site log keeps it until a person has looked.
const siteLossKey = "journal/site-log-lost"

// SiteLogLoss tells what is unknown since a damaged site log was accepted; false when
// nothing is, or a person has looked.
func (j *Journal) SiteLogLoss() (SiteLogLoss, bool, error) {
	var l SiteLogLoss
	_, err := j.site.recall(siteLossKey, &l)
	return l, !l.Time.IsZero(), err
}

// Warning says what follows.
func (l SiteLogLoss) Warning() string {
	return fmt.Sprintf("entries of the site log were lost on %s: nothing is thinned until pins and peers have been looked at and group maintain --trust-site-log says so", l.Time.Format(time.RFC3339))
}

// checkSiteLoss reports that pins and cursors may be missing and nobody has looked.
func (j *Journal) checkSiteLoss(trust bool) (bool, error) {
	_, unknown, err := j.SiteLogLoss()
	if j.o.faults.thinUnknown {
		return false, err
	}
	if err != nil || !unknown || !trust {
		return unknown, err
	}
	return false, fullOr(j.site.remember(siteLossKey, SiteLogLoss{}))
}

// copySiteLog puts the site log's values into the index.
func (j *Journal) copySiteLog(w pebble.Writer) error {
	j.site.mu.Lock()
	c := siteCopy{j.site.n, maps.Clone(j.site.live)}
	j.site.mu.Unlock()
	b, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("copy site log: %w", err)
	}
	return w.Set([]byte(keySiteCopy), b, pebble.NoSync)
}

// siteCopyIn is the copy that an index has, and the number of the entry that it had
// seen last. What does not read is not there.
func siteCopyIn(db *pebble.DB) (c siteCopy, seen uint64) {
	var t through
	for k, v := range map[string]any{keySiteCopy: &c, keyThrough: &t} {
		raw, closer, err := db.Get([]byte(k))
		if err != nil {
			continue
		}
		if json.Unmarshal(raw, v) != nil && k == keySiteCopy {
			c = siteCopy{}
		}
		_ = closer.Close() // a value in memory
	}
	return c, max(t.Site, c.N)
}

// openSite opens the site log; a damaged one is mended if that loses nothing.
func (j *Journal) openSite() (err error) {
	j.site, err = openSiteLog(j.o.FS, j.dir)
	var d *DamageError
	if errors.As(err, &d) && d.File == siteLogName {
		var c siteCopy
		var seen uint64
		there, xerr := exists(j.o.FS, j.o.FS.PathJoin(j.dir, "index"))
		if xerr != nil {
			return xerr
		}
		if there { // one that does not open is dealt with later
			if db, oerr := pebble.Open(j.o.FS.PathJoin(j.dir, "index"), j.pebbleOptions()); oerr == nil {
				c, seen = siteCopyIn(db)
				if err := db.Close(); err != nil {
					return fmt.Errorf("close index: %w", err)
				}
			}
		}
		err = j.mendSiteLog(c, seen, ErrSiteLogLost)
	}
	if err != nil {
		return err
	}
	// A site log that cannot be written ends the journal: what it said is not known.
	j.site.dead = func(err error) { _ = j.fail(err) }
	return nil
}

// checkSiteLog refuses a site log that is older than the index: cursors and roles in
// it are of an earlier time, and runs that it does not list may hold history.
func (j *Journal) checkSiteLog() error {
	c, seen := siteCopyIn(j.db)
	if n := j.site.count(); n >= seen {
		return nil
	}
	if err := j.site.close(); err != nil {
		return err
	}
	if err := j.mendSiteLog(c, seen, ErrRolledBack); err != nil {
		return err
	}
	j.site.dead = func(err error) { _ = j.fail(err) }
	return errors.Join(j.loadPast(), j.loadRewrapped())
}

// mendSiteLog puts the site log together anew from what verifies of it and the copy,
// and opens it. seen is an entry that was there; class is what is wrong with the log.
func (j *Journal) mendSiteLog(c siteCopy, seen uint64, class error) error {
	b, err := j.siteBytes()
	if err != nil {
		return err
	}
	s := scanSite(b)
	m := s.merge(c)
	older := class == ErrRolledBack // by whom it was put back is not known
	why := fmt.Errorf("%w: %s; %s", class, s.String(), c.String())
	if older {
		why = fmt.Errorf("%w: %w: %s ends at entry %d, the index was written after entry %d; %s", class, ErrSiteLogLost, siteLogName, s.newest(), seen, c.String())
	}
	if m.lost = m.lost || seen > m.n; m.lost {
		why = fmt.Errorf("%w; of an earlier time may be: %s", why, m.olderThan(seen))
	}
	if (m.lost || older) && !j.o.AcceptLoss {
		return why
	}
	listed, err := m.runsIn()
	if err == nil {
		err = j.checkListed(listed)
	}
	if err != nil {
		return fmt.Errorf("%w; %w", why, err)
	}
	name := j.lostName(siteLogName)
	m.n = max(m.n, seen)
	if m.lost || older {
		if err := j.noteSiteLoss(&m, why, name); err != nil {
			return err
		}
	}
	if err := j.replaceSiteLog(m, name); err != nil {
		return fmt.Errorf("mend site log: %w", err)
	}
	j.o.Log.Error("damaged site log put together anew", "dir", j.dir, "why", why, "lost", m.lost, "kept", name)
	j.site, err = openSiteLog(j.o.FS, j.dir)
	return err
}

// olderThan names the values that may be of an earlier time, for a person.
func (m *siteMerged) olderThan(seen uint64) string {
	if seen > m.n || len(m.may) == len(m.live) {
		m.may = sortedKeys(m.live)
	}
	if len(m.may) == 0 {
		return "none that is there, but some may be missing"
	}
	var names []string
	for _, k := range m.may {
		names = append(names, strings.TrimPrefix(k, "journal/"))
	}
	return strings.Join(names, ", ")
}

// String says how old the copy is.
func (c siteCopy) String() string {
	if c.N == 0 {
		return "the index has no copy"
	}
	return fmt.Sprintf("the index has a copy as of entry %d", c.N)
}

// noteSiteLoss puts the evidence among the values.
func (j *Journal) noteSiteLoss(m *siteMerged, why error, name string) error {
	var ls []Loss
	if raw, ok := m.live[lossesKey]; ok {
		if err := json.Unmarshal(raw, &ls); err != nil {
			return fmt.Errorf("recall %s: %w", lossesKey, err)
		}
	}
	now := j.o.Now()
	ls = append(ls, Loss{Time: now, Cause: why.Error(), Kept: []string{name}})
	m.live[lossesKey] = encodeBody(ls)
	if m.lost {
		m.live[siteLossKey] = encodeBody(SiteLogLoss{Time: now, Cause: why.Error(), Older: m.may, Kept: name})
	}
	return nil
}

// runsIn is the list of runs among the values.
func (m *siteMerged) runsIn() (s runState, err error) {
	if raw, ok := m.live[runStateKey]; ok {
		if err = json.Unmarshal(raw, &s); err != nil {
			err = fmt.Errorf("recall %s: %w", runStateKey, err)
		}
	}
	return s, err
}

// checkListed is why s, the newest list of runs that is left, cannot be the newest there
// was, or nil: a run is there that it does not name, and what it was folded from is not.
// Where the list is lost and the index with its copy as well, nothing can be accepted:
// which points those runs keep, and what went into which, nobody knows.
func (j *Journal) checkListed(s runState) error {
	if there, err := exists(j.o.FS, j.segs.path(s.floor())); err != nil || there {
		return err
	}
	stray, err := j.strayRuns(s)
	if err != nil || len(stray) == 0 {
		return err
	}
	return fmt.Errorf("%s is not listed, and what it was folded from is gone: no list of runs is left that is new enough", runName(stray[0]))
}

// siteBytes is the file as it is; nothing where there is none.
func (j *Journal) siteBytes() ([]byte, error) {
	f, err := j.o.FS.Open(j.o.FS.PathJoin(j.dir, siteLogName))
	if notThere(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

// replaceSiteLog keeps the file aside under a name in lost/ and writes one of the merged
// values in its place.
func (j *Journal) replaceSiteLog(m siteMerged, name string) error {
	fs, dir := j.o.FS, j.o.FS.PathJoin(j.dir, lostDir)
	path := fs.PathJoin(j.dir, siteLogName)
	if err := makeDir(fs, dir); err != nil {
		return err
	}
	if there, err := exists(fs, path); err != nil {
		return err
	} else if there {
		if err := errors.Join(fs.Link(path, fs.PathJoin(dir, name)), syncDir(fs, dir)); err != nil {
			return err
		}
	}
	l := siteLog{live: m.live, n: m.n}
	out, _ := l.encode()
	tmp := fs.PathJoin(j.dir, siteRewriteName)
	f, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(out)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(fs, j.dir)
}
