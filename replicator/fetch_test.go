package replicator

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"testing"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
)

// Either end gets frames of the group that the two share, as they are stored at the
// other; nobody gets those of another group, nor learns that it is there.
func TestFetchFrames(t *testing.T) {
	p := newPair(t)
	id := p.from.Identity()
	from, shutFrom := realJournal(t, t.TempDir(), id)
	to, shutTo := realJournal(t, t.TempDir(), id)
	t.Cleanup(func() { p.source.down(); p.replica.down(); shutFrom(); shutTo() })
	p.source.o.Groups = func() []Group {
		return []Group{{Tenant: tenant, Name: group, Source: JournalSource(from), Peers: []string{"b"}}}
	}
	p.replica.o.Receive = func(string, journal.Identity, string, string) (Replica, error) { return to, nil }
	w, err := from.BeginEpoch(t.Context(), "a", journal.Position{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	v := cbt.Volume{ID: cbt.VolumeID(cbt.NewID()), Name: "disk", Size: 1 << 20}
	if err := w.AddVolume(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	pending, err := w.Record(t.Context(), cbt.Event{Kind: cbt.EventWrite, Volume: v.ID, Extent: cbt.Extent{Length: 8192}, Data: bytes.Repeat([]byte("secret: "), 1024)})
	if err == nil {
		err = pending.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	p.up()
	eventually(t, "the replica holds it", func() bool { return from.Head().Seq > 0 && to.Head().Durable.Position == from.Head().Position })
	at := from.Head().Position
	f, err := from.FrameFor(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	want, err := io.ReadAll(f.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for peer, r := range map[string]*Replicator{"a": p.replica.rep, "b": p.source.rep} {
		got, err := r.Fetch(t.Context(), peer, id, at)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("from %s: %d bytes, %v", peer, len(got), err)
		}
		var refused *RefusedError
		beyond := journal.Position{Epoch: at.Epoch, Seq: at.Seq + 9}
		if _, err := r.Fetch(t.Context(), peer, id, beyond); !errors.As(err, &refused) || refused.Code != CodeNoRecord {
			t.Errorf("from %s, beyond the head: %v", peer, err)
		}
		cells := journal.Cells{Position: at, Volume: v.ID, Extent: cbt.Extent{Length: 4096}}
		if got, err := r.FetchCells(t.Context(), peer, id, cells); err != nil || !bytes.Equal(got, bytes.Repeat([]byte("secret: "), 512)) {
			t.Errorf("from %s: %d bytes of a cell, %v", peer, len(got), err)
		}
		cells.Extent.Offset = 8192
		if _, err := r.FetchCells(t.Context(), peer, id, cells); !errors.As(err, &refused) || refused.Code != CodeNoRecord {
			t.Errorf("from %s, a cell not written: %v", peer, err)
		}
		other := id
		other.Group = cbt.NewID()
		if _, err := r.Fetch(t.Context(), peer, other, at); !errors.As(err, &refused) || refused.Code != CodeUnknownGroup {
			t.Errorf("from %s, of another group: %v", peer, err)
		}
		if _, err := r.FetchCells(t.Context(), peer, other, cells); !errors.As(err, &refused) || refused.Code != CodeUnknownGroup {
			t.Errorf("from %s, cells of another group: %v", peer, err)
		}
		if _, err := r.Fetch(t.Context(), "nobody", id, at); !errors.Is(err, ErrNotConnected) {
			t.Errorf("from nobody: %v", err)
		}
	}
}

func FuzzQuestion(f *testing.F) {
	q := question{most: 1 << 20, group: journal.Identity{Tenant: cbt.NewID(), Group: cbt.NewID()}, at: journal.Position{Epoch: journal.EpochID{1}, Seq: 7}}
	f.Add(q.encode())
	q.part = &journal.Cells{Position: q.at, Volume: cbt.VolumeID{3}, Extent: cbt.Extent{Offset: 8192, Length: 65536}}
	f.Add(q.encode())
	q.part, q.about = nil, &consultation{"heads", []byte("{}")}
	f.Add(q.encode())
	f.Add(make([]byte, questionBytes))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b) // past the checksums
		if len(b) >= questionBytes {
			seal(b[:questionBytes])
		}
		if n := questionBytes + consultBytes; len(b) >= n && b[5] == kindConsult {
			binary.LittleEndian.PutUint32(b[questionBytes+8:], crc32.Checksum(b[n:], castagnoli))
			seal(b[questionBytes:n])
		} else if len(b) >= questionBytes+cellsBytes {
			seal(b[questionBytes:][:cellsBytes])
		}
		q, err := readQuestion(bytes.NewReader(b))
		if err != nil {
			return
		}
		if got := q.encode(); !bytes.Equal(got, b[:len(got)]) {
			t.Fatalf("%x became %x", b, got)
		}
		if q.part != nil && q.part.Check() != nil {
			t.Fatalf("%+v passed", q.part)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(answer{bytes: 4096}.encode())
	f.Add(answer{code: CodeNoRecord, bytes: 12}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= answerBytes {
			b = bytes.Clone(b)
			seal(b[:answerBytes])
		}
		a, err := readAnswer(bytes.NewReader(b), 1<<20)
		if err != nil {
			return
		}
		if a.bytes > 1<<20 || !bytes.Equal(a.encode(), b[:answerBytes]) {
			t.Fatalf("%x became %x", b[:answerBytes], a.encode())
		}
	})
}
