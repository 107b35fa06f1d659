package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/scale"
)

const siteLogPath = "j/" + siteLogName

// siteWorn is a closed journal with folded history and a site log of many entries: the
// pins, values that were set once, early or late, and one that was set again and again.
func siteWorn(t testing.TB, planted faults) (h *herbarium, values map[string]json.RawMessage) {
	t.Helper()
	h = collect(t, newSeed(t), true)
	must(t, h.peer.Close())
	h.o.faults = planted
	h.o.FS = plant(t, h.now)
	j := start(t, "j", h.o)
	must(t, j.Remember("test/early", strings.Repeat("early", 40)))
	_, err := j.Pin(soon(t), "kept", Point{Position: h.points[len(h.points)/2]}, false)
	must(t, err)
	for i := range 12 {
		must(t, j.Remember("test/again", i))
	}
	must(t, j.Remember("test/late", "late"))
	j.close()
	h.now = filesUnder(t, h.o.FS, "j")
	values = maps.Clone(j.site.live)
	return h, values
}

// siteEntries is where each entry of a site log begins, and its end.
func siteEntries(b []byte) []int {
	at := []int{0}
	for n := 0; n+siteEntryHead < len(b); {
		n += siteEntryHead + int(binary.LittleEndian.Uint32(b[n:]))
		at = append(at, n)
	}
	return at
}

// Whatever entry of the site log is damaged after a clean close, the copy in the index
// has it: the journal opens, knows every value, keeps the damaged file, and thins as ever.
func TestSiteLogIsMendedFromItsCopy(t *testing.T) {
	h, values := siteWorn(t, faults{})
	at := siteEntries(h.now[siteLogPath])
	for i := range len(at) - 2 { // the last one is a torn tail to some of the damage
		for _, damage := range []func([]byte){
			func(b []byte) { b[at[i]] ^= 4 },
			func(b []byte) { b[at[i+1]-1] ^= 1 },
			func(b []byte) { clear(b[at[i]:at[min(i+2, len(at)-2)]]) },
		} {
			files := maps.Clone(h.now)
			files[siteLogPath] = bytes.Clone(files[siteLogPath])
			damage(files[siteLogPath])
			o := h.o
			o.FS = plant(t, files)
			j, err := Open("j", o)
			if err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
			for k, v := range values {
				if got := j.site.live[k]; !bytes.Equal(got, v) {
					t.Errorf("entry %d: %s is %s, was %s", i, k, got, v)
				}
			}
			if _, unknown, err := j.SiteLogLoss(); err != nil || unknown {
				t.Errorf("entry %d: called lost: %v", i, err)
			}
			if _, err := h.look(t, j, 3); err != nil {
				t.Errorf("entry %d: %v", i, err)
			}
			must(t, j.Close())
			if b := contentOf(t, o.FS, "j/lost/site.log.0"); !bytes.Equal(b, files[siteLogPath]) {
				t.Errorf("entry %d: the damaged file is not kept", i)
			}
		}
	}
}

// Without the copy what is lost is lost: the journal refuses, changes nothing and says
// which values may be old; accepted, it knows the newest of each that is left, and thins
// nothing until a person has looked.
func TestDamagedSiteLogIsAccepted(t *testing.T) {
	if err := acceptsSiteLog(t, faults{}); err != nil {
		t.Fatal(err)
	}
}

func acceptsSiteLog(t *testing.T, plants faults) error {
	h, _ := siteWorn(t, plants)
	b := bytes.Clone(h.now[siteLogPath])
	pin := bytes.LastIndex(b, []byte(pinsKey))
	if pin < 0 || bytes.LastIndex(b, []byte(runStateKey)) > pin {
		return errors.New("the pins are not the newest but the values of the test")
	}
	b[pin] ^= 1
	files := maps.Clone(h.now)
	files[siteLogPath] = b
	maps.DeleteFunc(files, func(n string, _ []byte) bool { return strings.Contains(n, "/index/") })
	o := h.o
	o.FS = plant(t, files)
	for range 2 {
		_, err := Open("j", o)
		if !errors.Is(err, ErrSiteLogLost) || !IsLoss(err) || !strings.Contains(err.Error(), "test/early") || strings.Contains(err.Error(), "test/late") {
			return fmt.Errorf("open: %w", err)
		}
		if err := h.leftAlone(t, o.FS, files); err != nil {
			return err
		}
	}
	o.AcceptLoss = true
	j := start(t, "j", o)
	defer func() { j.close() }()
	l, unknown, err := j.SiteLogLoss()
	if err != nil || !unknown || len(l.Older) == 0 {
		return fmt.Errorf("unknown is %v, %+v: %w", unknown, l, err)
	}
	if ls, err := j.Losses(); err != nil || len(ls) != 1 || ls[0].Kept[0] != l.Kept {
		return fmt.Errorf("the evidence is %+v: %w", ls, err)
	}
	if !bytes.Equal(contentOf(t, o.FS, "j/lost/"+l.Kept), b) {
		return errors.New("the damaged file is not kept")
	}
	if whole, err := h.look(t, j.Journal, 1); err != nil || !whole {
		return fmt.Errorf("not all reads as it was: %w", err)
	}
	m := Maintenance{Retention: Retention{Ladder: []Rung{{Every: time.Nanosecond}}}, FoldBytes: 1, Now: time.Now().Add(time.Hour)}
	m.Ladder = []Rung{{Every: 240 * time.Hour}}
	got, err := j.Maintain(soon(t), m)
	if err != nil || !got.SiteLogLost || got.Warning != l.Warning() || got.Folded+got.Merged > 0 {
		return fmt.Errorf("maintained %+v: %w", got, err)
	}
	if whole, err := h.look(t, j.Journal, 1); err != nil || !whole {
		return fmt.Errorf("points went while pins were unknown: %w", err)
	}
	m.TrustSiteLog = true
	got, err = j.Maintain(soon(t), m)
	if err != nil || got.SiteLogLost || got.Warning != "" {
		return fmt.Errorf("trusted, maintained %+v: %w", got, err)
	}
	if whole, err := h.look(t, j.Journal, 1); err != nil || whole {
		return fmt.Errorf("nothing was thinned once trusted: %w", err)
	}
	return nil
}

// A site log that is gone takes nothing with it: the opening refuses, and with the copy
// all that it said comes back.
func TestMissingSiteLogTakesNothingAway(t *testing.T) {
	h, values := siteWorn(t, faults{})
	files := maps.Clone(h.now)
	delete(files, siteLogPath)
	o := h.o
	o.FS = plant(t, files)
	if _, err := Open("j", o); !errors.Is(err, ErrRolledBack) {
		t.Fatalf("open: %v", err)
	}
	must(t, h.leftAlone(t, o.FS, files))
	o.AcceptLoss = true
	j := start(t, "j", o)
	for k, v := range values {
		if got := j.site.live[k]; !bytes.Equal(got, v) && k != lossesKey {
			t.Errorf("%s is %s, was %s", k, got, v)
		}
	}
	if whole, err := h.look(t, j.Journal, 1); err != nil || !whole {
		t.Errorf("not all reads as it was: %v", err)
	}
	j.close()
	// Without the index nobody knows what the runs keep: nothing is taken for an empty history.
	maps.DeleteFunc(files, func(n string, _ []byte) bool { return strings.Contains(n, "/index/") })
	o.FS = plant(t, files)
	for _, o.AcceptLoss = range []bool{false, true} {
		if j, err := Open("j", o); err == nil {
			must(t, j.Close())
			t.Fatal("opened without site log and index")
		}
		must(t, h.leftAlone(t, o.FS, files))
	}
}

// FuzzSiteScan: whatever the bytes of a site log are, scanning them ends, holes lie one
// behind the other, and what verifies of them makes a log that scans without any.
func FuzzSiteScan(f *testing.F) {
	rng := rand.New(rand.NewPCG(7, 7))
	l := siteLog{n: 3, live: map[string]json.RawMessage{"a": []byte(`1`), "b": []byte(`"x"`)}}
	b, chain := l.encode()
	for i := range 6 {
		var e []byte
		e, chain = encodeSiteEntry(siteEntry{fmt.Sprint("k", i%3), encodeBody(i), uint64(4 + i)}, chain)
		b = append(b, e...)
	}
	f.Add(b)
	for range 40 {
		c := bytes.Clone(b)
		for range 1 + rng.IntN(3) {
			c[rng.IntN(len(c))] ^= 1 << rng.IntN(8)
		}
		f.Add(c[:1+rng.IntN(len(c))])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := scanSite(b)
		var at uint64
		for _, h := range s.holes {
			if uint64(h.Offset) < at || h.Bytes <= 0 || h.Offset+h.Bytes > int64(len(b)) {
				t.Fatalf("hole %+v of %d bytes", h, len(b))
			}
			at = uint64(h.Offset + h.Bytes)
		}
		m := s.merge(siteCopy{})
		if m.n != s.newest() || len(s.holes) > 0 != m.lost {
			t.Fatalf("merged %+v of %+v", m, s)
		}
		whole := siteLog{live: m.live, n: m.n}
		again, _ := whole.encode()
		r := scanSite(again)
		if len(r.holes) > 0 || len(r.merge(siteCopy{}).live) != len(m.live) {
			t.Fatalf("what was written again scans as %+v", r)
		}
	})
}

// The last entry is taken for a torn one only where a crash could have left it so.
func TestDamagedLastEntryIsNoTornTail(t *testing.T) {
	h, _ := siteWorn(t, faults{})
	at := siteEntries(h.now[siteLogPath])
	from, to := at[len(at)-2], at[len(at)-1]
	step := 1
	if !scale.Sweeps() {
		step = 11
	}
	for i := from + 4; i < to; i += step { // a length that is too large is that of an entry cut off
		files := maps.Clone(h.now)
		files[siteLogPath] = bytes.Clone(files[siteLogPath])
		files[siteLogPath][i] ^= 0x40
		if lacksSector(files[siteLogPath][from:to], int64(from)) {
			continue
		}
		maps.DeleteFunc(files, func(n string, _ []byte) bool { return strings.Contains(n, "/index/") })
		o := h.o
		o.FS = plant(t, files)
		if j, err := Open("j", o); !errors.Is(err, ErrSiteLogLost) {
			if err == nil {
				must(t, j.Close())
			}
			t.Fatalf("byte %d of the last entry is flipped: %v", i-from, err)
		}
		must(t, h.leftAlone(t, o.FS, files))
	}
}
