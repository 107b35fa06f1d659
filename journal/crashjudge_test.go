package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal/journaltest"
)

// at is the state of the group at a head: of its record, or of the newest one before
// it in its epoch, or of the parent that an epoch begins at. nil: nobody made it.
func (k known) at(h Head) *journaltest.State {
	var s *journaltest.State
	var best Seq
	for _, m := range k.moments {
		if m.at.Epoch == h.Epoch && m.at.Seq <= h.Seq && (s == nil || m.at.Seq >= best) {
			s, best = m.state, m.at.Seq
		}
	}
	return s
}

func (c *crasher) compare(j *Journal, k known) error {
	h := j.Head()
	if len(j.Branches()) == 0 {
		if k.must > 0 {
			return fmt.Errorf("the journal is empty")
		}
		return nil
	}
	if err := c.compareHead(j, k, h); err != nil {
		return err
	}
	var some []moment
	if k.must > 0 {
		some = append(some, k.moments[k.must-1], k.moments[c.rng.IntN(k.must)])
	}
	if n := len(k.moments); n > 0 {
		some = append(some, k.moments[c.rng.IntN(n)])
	}
	for _, m := range k.moments {
		if k.pins[m.at] && c.rng.IntN(len(k.pins)) == 0 {
			some = append(some, m)
			break
		}
	}
	for _, m := range some {
		if err := c.compareMoment(j, k, m); err != nil {
			return err
		}
	}
	if _, err := j.View(context.Background(), Point{Position: Position{h.Epoch, h.Seq + 1}}); !errors.Is(err, ErrNoPoint) {
		return fmt.Errorf("a record after the end can be viewed: %v", err)
	}
	if c.rng.IntN(8) > 0 {
		return nil
	}
	return c.compareList(j, k)
}

// compareHead wants the end to be a record that was made, with its bytes.
func (c *crasher) compareHead(j *Journal, k known, h Head) error {
	s := k.at(h)
	if s == nil { // the epoch was being begun
		bs := j.Branches()
		s = k.begun[bs[len(bs)-1].Parent.Position]
	}
	if s == nil {
		return fmt.Errorf("the journal ends at record %s, which nobody made", h.Position)
	}
	return c.read(j, moment{at: h.Position, state: s})
}

// compareMoment wants a moment that must be there, or allows one that may.
func (c *crasher) compareMoment(j *Journal, k known, m moment) error {
	err := c.read(j, m)
	if !gone(err) && !errors.Is(err, ErrUnknownParent) {
		return err
	}
	for i := range k.must {
		if k.moments[i].at == m.at && !m.outside && (k.pins[m.at] || !m.time.Before(k.horizon)) {
			return fmt.Errorf("record %s is gone: %w; the epochs held end at %v", m.at, err, ends(j))
		}
	}
	if k.pins[m.at] {
		return fmt.Errorf("pinned record %s is gone: %w", m.at, err)
	}
	return nil
}

// ends is where each epoch held begins and ends, for errors.
func ends(j *Journal) (out []string) {
	for _, b := range j.Branches() {
		out = append(out, fmt.Sprintf("%s %d-%d", b.ID.Short(), b.First(), b.Last.Seq))
	}
	return out
}

// compareList wants every point that is listed to be one that was made.
func (c *crasher) compareList(j *Journal, k known) error {
	keeps, err := j.Points(context.Background(), time.Time{}, time.Time{})
	if err != nil {
		return err
	}
	for _, p := range keeps {
		s := k.at(Head{Position: p.Position})
		if s == nil {
			continue // of an epoch that was being begun
		}
		if err := c.read(j, moment{at: p.Position, state: s}); err != nil {
			return fmt.Errorf("listed point %s, kept for %v: %w", p.Position, p.Reasons, err)
		}
	}
	return nil
}

// read holds the volumes at a moment to the model. Before they are all added there
// are fewer.
func (c *crasher) read(j *Journal, m moment) error {
	v, err := j.View(context.Background(), Point{Position: m.at})
	if err != nil {
		return err
	}
	there := make(map[cbt.VolumeID]bool)
	for _, vol := range v.Volumes() {
		there[vol.ID] = true
	}
	for i, vol := range c.vols {
		if !there[vol.ID] {
			continue
		}
		got := make([]byte, m.state.Sizes()[i])
		if err := v.ReadAt(context.Background(), vol.ID, got, 0); err != nil {
			return errors.Join(fmt.Errorf("at record %s: %w", m.at, err), v.Close())
		}
		if at := m.state.Differs(i, got); at >= 0 {
			return errors.Join(fmt.Errorf("volume %s at record %s differs from the model at %d", vol.Name, m.at, at), v.Close())
		}
	}
	return v.Close()
}
