package replicator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// three is a group at three sites with real journals.
type three struct {
	*testing.T
	id      journal.Identity
	a, b, c *place
	vol     cbt.Volume
	rng     *rand.Rand
}

// place is one of the sites.
type place struct {
	*endpoint
	j    *journal.Journal
	dir  string
	shut func()
	w    *journal.Writer // while it reigns
}

// newThree makes the sites; keys are those of their journals.
func newThree(t *testing.T, keys ...*journal.Keys) *three {
	s := &three{T: t, id: journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID(), Stream: cbt.NewID()}, rng: rand.New(rand.NewPCG(11, 11)),
		vol: cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "disk", Size: 4 << 20}}
	for i, p := range []**place{&s.a, &s.b, &s.c} {
		x := &place{endpoint: newEndpoint(t, string(rune('a'+i))), dir: t.TempDir()}
		o := journal.Options{Create: &s.id, SegmentBytes: 1 << 20}
		if i < len(keys) && keys[i] != nil {
			o.Keys = keys[i]
		}
		x.j, x.shut = journalWith(t, x.dir, o)
		x.o.Listen = "127.0.0.1:0"
		x.o.Receive = func(string, journal.Identity, string, string) (Replica, error) { return x.j, nil }
		*p = x
	}
	t.Cleanup(func() {
		for _, p := range []*place{s.a, s.b, s.c} {
			p.down()
			p.shut()
		}
	})
	return s
}

// knows lets p send to others, which are up, and have it called by callers.
func (p *place) knows(others []*place, callers ...*place) {
	var names []string
	p.o.Peers = nil
	for _, o := range others {
		names = append(names, o.o.Site)
		p.o.Peers = append(p.o.Peers, Peer{Name: o.o.Site, Address: o.rep.Addr().String(), Pin: o.o.Identity.Pin()})
	}
	for _, o := range callers {
		p.o.Peers = append(p.o.Peers, Peer{Name: o.o.Site, Pin: o.o.Identity.Pin()})
	}
	p.o.Groups = func() []Group {
		if len(names) == 0 {
			return nil
		}
		return []Group{{Tenant: tenant, Name: group, Source: JournalSource(p.j), Peers: names, Relay: p.w == nil}}
	}
}

// reign begins an epoch at p, behind a record (zero: the head).
func (s *three) reign(p *place, at journal.Position) {
	s.Helper()
	var err error
	if p.w, err = p.j.BeginEpoch(s.Context(), p.o.Site, at, 0); err != nil {
		s.Fatal(err)
	}
	if at.IsZero() {
		if err := p.w.AddVolume(s.Context(), s.vol); err != nil {
			s.Fatal(err)
		}
	}
	s.record(p, cbt.Event{Kind: cbt.EventSynced, Volume: s.vol.ID})
}

func (s *three) record(p *place, ev cbt.Event) {
	s.Helper()
	pending, err := p.w.Record(s.Context(), ev)
	if err == nil {
		err = pending.Wait(s.Context())
	}
	if err != nil {
		s.Fatal(err)
	}
}

// write writes n cells of mark and random bytes.
func (s *three) write(p *place, n int, mark string) journal.Position {
	s.Helper()
	for range n {
		data := make([]byte, 2*cbt.CellBytes)
		fillRandom(s.rng, data)
		copy(data[100:], mark)
		s.record(p, cbt.Event{Kind: cbt.EventWrite, Volume: s.vol.ID, Data: data, Extent: cbt.Extent{Offset: s.rng.Int64N(s.vol.Size/cbt.CellBytes-1) * cbt.CellBytes, Length: int64(len(data))}})
	}
	if err := p.w.WaitDurable(s.Context()); err != nil {
		s.Fatal(err)
	}
	return p.j.Head().Durable.Position
}

// level waits until to has durably what from has.
func (s *three) level(from, to *place) {
	s.Helper()
	want := from.j.Head().Durable
	eventually(s.T, to.o.Site+" is level with "+from.o.Site, func() bool { return to.j.Head().Durable == want })
}

// same compares the volume at a record of both.
func (s *three) same(what string, x, y *place, at journal.Position) {
	s.Helper()
	one, err := imageAt(s.Context(), x.j, at, s.vol)
	two, err2 := imageAt(s.Context(), y.j, at, s.vol)
	if err = errors.Join(err, err2); err != nil || !bytes.Equal(one, two) || len(bytes.Trim(one, "\x00")) == 0 {
		s.Errorf("%s: the images at %s differ, or are empty: %v", what, at, err)
	}
}

// lagTo is what p knows of a peer.
func (p *place) lagTo(peer string) Lag {
	for _, l := range p.rep.Lags() {
		if l.Peer == peer && l.Direction == Outbound {
			return l
		}
	}
	return Lag{}
}

// A dies, and B is promoted before, at and behind the end of what C holds, ahead of B in
// the first: C follows
// B's reign by what it lacks, and what it held beyond the fork stays readable.
func TestThirdSiteFollowsTheNewReign(t *testing.T) {
	for _, name := range []string{"before", "at", "behind"} {
		t.Run(name, func(t *testing.T) {
			s := newThree(t)
			s.b.knows(nil, s.a)
			s.c.knows(nil, s.a)
			s.b.up(faults{})
			s.c.up(faults{})
			s.a.knows([]*place{s.b, s.c})
			s.reign(s.a, journal.Position{})
			s.a.up(faults{})
			early := s.write(s.a, 150, "early")
			s.level(s.a, s.b)
			s.level(s.a, s.c)
			ahead, late := s.c, s.b // of the two peers
			if name != "before" {
				ahead, late = s.b, s.c
			}
			late.down()
			head := s.write(s.a, 20, "late")
			s.level(s.a, ahead)
			s.a.down()
			want, err := imageAt(t.Context(), s.a.j, s.c.j.Head().Position, s.vol)
			if err != nil {
				t.Fatal(err)
			}

			fork := map[string]journal.Position{"before": {Epoch: early.Epoch, Seq: early.Seq - 7}, "at": early, "behind": {Epoch: head.Epoch, Seq: head.Seq - 5}}[name]
			tail := s.c.j.Head().Position
			s.b.down()
			s.c.down()
			s.c.knows(nil, s.b)
			s.c.up(faults{})
			s.b.knows([]*place{s.c})
			s.reign(s.b, fork)
			s.write(s.b, 10, "new")
			s.b.up(faults{})
			s.level(s.b, s.c)
			s.same("the new reign", s.b, s.c, s.b.j.Head().Position)
			got, err := imageAt(t.Context(), s.c.j, tail, s.vol)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("what C held at %s is not readable as it was: %v", tail, err)
			}
			if n := len(s.c.j.Branches()); n != 2 {
				t.Errorf("C knows %d epochs", n)
			}
			eventually(t, "B knows", func() bool { l := s.b.lagTo("c"); return l.Known && l.Records == 0 })
			if l, all := s.b.lagTo("c"), uint64(s.a.j.Head().Bytes); l.JournalBytes > all/2 {
				t.Errorf("C was sent %d bytes of %d", l.JournalBytes, all)
			}
		})
	}
}

// A site without the tenant's key takes a sealed group, verifies and folds it, is
// repaired, passes it on to a site that has the key, and can read nothing of it.
func TestSiteWithoutTheKeyDoesAllButRead(t *testing.T) {
	ring := func() *journal.Keys {
		k := new(journal.Keys)
		if err := k.Add("acme", bytes.Repeat([]byte{7}, 32)); err != nil {
			t.Fatal(err)
		}
		return k
	}
	s := newThree(t, ring(), nil, ring())
	s.c.knows(nil, s.b)
	s.c.up(faults{})
	s.b.knows([]*place{s.c}, s.a)
	s.b.up(faults{})
	s.a.knows([]*place{s.b})
	s.reign(s.a, journal.Position{})
	s.a.up(faults{})
	const secret = "nobody but the tenant reads this"
	s.write(s.a, 200, secret)
	s.level(s.a, s.b)
	s.level(s.b, s.c)
	s.same("over the site without the key", s.a, s.c, s.a.j.Head().Position)

	unreadable := func(when string) {
		t.Helper()
		var key *journal.KeyError
		if _, err := imageAt(t.Context(), s.b.j, s.b.j.Head().Position, s.vol); !errors.As(err, &key) || !errors.Is(err, journal.ErrNoKey) {
			t.Errorf("%s: the site without the key reads: %v", when, err)
		}
		if found, err := s.b.j.Verify(t.Context(), nil); err != nil || len(found) > 0 {
			t.Errorf("%s: verify: %v, %v", when, found, err)
		}
		if file := fileWith(t, s.b.dir, secret); file != "" {
			t.Errorf("%s: %s holds what was written", when, file)
		}
	}
	unreadable("as received")
	if file := fileWith(t, s.a.dir, s.vol.Name); file == "" {
		t.Error("the search for bytes in files finds none")
	}

	s.damage(s.b)
	if found, err := s.b.j.Verify(t.Context(), nil); err != nil || len(found) == 0 {
		t.Fatalf("a flipped byte: %+v, %v", found, err)
	}
	fetch := func(ctx context.Context, p journal.Position) ([]byte, error) { return s.b.rep.Fetch(ctx, "a", s.id, p) }
	cells := func(ctx context.Context, c journal.Cells) ([]byte, error) {
		return s.b.rep.FetchCells(ctx, "a", s.id, c)
	}
	if r, err := s.b.j.Repair(t.Context(), fetch, cells); err != nil || len(r.Left) > 0 || r.Frames == 0 {
		t.Fatalf("repair: %+v, %v", r, err)
	}
	unreadable("repaired")

	if m, err := s.b.j.Maintain(t.Context(), journal.Maintenance{Retention: foldAtOnce, FoldBytes: 1}); err != nil || m.Folded == 0 {
		t.Fatalf("fold: %+v, %v", m, err)
	}
	unreadable("folded")
	s.write(s.a, 20, secret)
	s.level(s.a, s.b)
	s.level(s.b, s.c)
	s.same("after the fold", s.a, s.c, s.a.j.Head().Position)
	if file := fileWith(t, s.c.dir, secret); file != "" {
		t.Errorf("%s holds what was written, unsealed", file)
	}
}

// damage flips a byte in the middle of the site's first segment.
func (s *three) damage(p *place) {
	s.Helper()
	files, err := filepath.Glob(filepath.Join(p.dir, "segments", "*"))
	if err != nil || len(files) < 2 {
		s.Fatalf("segments %v, %v", files, err)
	}
	f, err := os.OpenFile(files[0], os.O_RDWR, 0)
	if err != nil {
		s.Fatal(err)
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 512<<10)
	b[0] ^= 1
	_, werr := f.WriteAt(b, 512<<10)
	if err = errors.Join(err, werr, f.Close()); err != nil {
		s.Fatal(err)
	}
}

// fileWith is a file below dir that holds text, if there is one.
func fileWith(t *testing.T, dir, text string) (found string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return ignoreGone(err)
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, []byte(text)) {
			found = path
		}
		return ignoreGone(err)
	})
	if err != nil {
		t.Fatal(fmt.Errorf("search %s: %w", dir, err))
	}
	return found
}

// ignoreGone is err, but for a file that the journal has removed meanwhile.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
