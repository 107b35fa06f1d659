package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// EndLoad is a load of stamps.
type EndLoad struct {
	Writes     int // a second
	WriteBytes int64
	Seed       uint64
}

// Load writes stamps until Unload.
func (e *end) Load(o EndLoad, _ *None) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	ctx, stop := context.WithCancel(context.Background())
	l := newLoad(e.b.w, e.b.volume, o)
	e.load, e.unload, e.loaded = l, stop, make(chan error, 1)
	go func() { e.loaded <- l.run(ctx) }()
	return nil
}

// Unload ends the load, and tells how it went.
func (e *end) Unload(None, *None) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.endLoad()
}

func (e *end) endLoad() error {
	if e.unload == nil {
		return nil
	}
	e.unload()
	e.unload = nil
	return <-e.loaded
}

// EndClaim is what the source says of itself at a moment.
type EndClaim struct {
	At       time.Time                // before the report was made: waiting for it is not held against it
	Answered uint64                   // stamps
	RPO      map[string]time.Duration // by peer, as far as known
}

// Claim is what the source's replicator says.
func (e *end) Claim(_ None, c *EndClaim) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.load != nil {
		c.Answered = e.load.answered.Load()
	}
	c.At, c.RPO = time.Now(), map[string]time.Duration{}
	if e.replica == nil {
		return nil
	}
	for _, lag := range e.replica.Lags() {
		if lag.Known {
			c.RPO[lag.Peer] = lag.RPO
		}
	}
	return nil
}

// EndMissing asks about the stamp after one, at a moment.
type EndMissing struct {
	Last uint64
	At   time.Time
}

// Missing is how old the first answered write after a stamp was.
func (e *end) Missing(m EndMissing, d *time.Duration) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	*d = e.load.missing(m.Last, m.At)
	return nil
}

// EndStamp is the newest stamp at a moment; number 0: there is none.
type EndStamp struct {
	Number uint64
	Time   time.Time
	At     time.Time
}

// Newest finds the newest stamp of the newest durable point here; writes are of so many
// bytes.
func (e *end) Newest(writeBytes int64, s *EndStamp) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.reader == nil {
		e.reader = &reader{b: e.b.j, volume: e.b.volume.ID, writeBytes: writeBytes}
	}
	found, at, err := e.reader.newest(context.Background())
	s.Number, s.Time, s.At = found.Number, found.Time, at
	return err
}

// Kinds of what Fill writes.
const (
	randomKind   = "random"
	databaseKind = "database"
	zeroKind     = "zero"
)

// EndFill says what to write.
type EndFill struct {
	Bytes int64
	Kind  string
	Seed  uint64
}

// fillUnits are the sizes of the writes of each kind.
var fillUnits = map[string]int64{randomKind: 64 << 10, databaseKind: 16 << 10, zeroKind: 64 << 10}

// Fill writes at random places and waits until all is durable here. It gives how many
// bytes were written: each write is one record.
func (e *end) Fill(f EndFill, written *int64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	unit, ok := fillUnits[f.Kind]
	if !ok {
		return fmt.Errorf("no load is called %q", f.Kind)
	}
	e.unit, e.base = unit, e.b.j.Head().Seq
	ctx := context.Background()
	w := newContent(f.Kind, f.Seed)
	rng := rand.New(rand.NewPCG(f.Seed, 3))
	var flying []cbt.Pending
	for *written < f.Bytes {
		off := rng.Int64N(e.b.volume.Size/unit) * unit
		p := make([]byte, unit)
		w.page(p, off)
		pending, err := e.b.w.Record(ctx, cbt.Event{Kind: cbt.EventWrite, Volume: e.b.volume.ID, Extent: cbt.Extent{Offset: off, Length: unit}, Data: p})
		if err != nil {
			return err
		}
		if flying = append(flying, pending); len(flying) == 32 {
			if err := flying[0].Wait(ctx); err != nil {
				return err
			}
			flying = flying[1:]
		}
		*written += unit
	}
	return e.b.drain(ctx)
}

// content makes the bytes of a kind of load.
type content struct {
	kind   string
	random *rand.ChaCha8
	rng    *rand.Rand
	pages  map[int64][]byte // of the database, as they were last written
}

func newContent(kind string, seed uint64) *content {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	c := &content{kind: kind, random: rand.NewChaCha8(key), pages: map[int64][]byte{}}
	c.rng = rand.New(c.random)
	return c
}

// page fills p, which goes to off.
func (c *content) page(p []byte, off int64) {
	switch c.kind {
	case databaseKind:
		c.database(p, off)
	case zeroKind: // one block in sixteen holds something
		_, _ = c.random.Read(p[:len(p)/16]) // it always fills
	default:
		_, _ = c.random.Read(p) // it always fills
	}
}

// rowBytes is a row: a random key of 16 bytes, a number, and text.
const rowBytes = 128

// database writes a page of rows with a header that counts its versions, as an index
// tree does: of a page that was there already, one row in eight is another one now.
func (c *content) database(p []byte, off int64) {
	old := c.pages[off]
	if old == nil {
		for at := rowBytes; at < len(p); at += rowBytes {
			c.row(p[at : at+rowBytes])
		}
	} else {
		copy(p, old)
		for at := rowBytes; at < len(p); at += rowBytes {
			if c.rng.IntN(8) == 0 {
				c.row(p[at : at+rowBytes])
			}
		}
	}
	binary.LittleEndian.PutUint64(p[8:], uint64(off))
	binary.LittleEndian.PutUint64(p[16:], binary.LittleEndian.Uint64(p[16:])+1)
	c.pages[off] = p
}

var rowWords = []string{"pending ", "shipped ", "invoice ", "customer ", "warehouse ", "north ", "south ", "returned ", "2026-11-", "EUR ", "open ", "closed "}

func (c *content) row(p []byte) {
	_, _ = c.random.Read(p[:16]) // it always fills
	binary.LittleEndian.PutUint32(p[16:], c.rng.Uint32N(100_000))
	for at := 24; at < len(p); {
		at += copy(p[at:], rowWords[c.rng.IntN(len(rowWords))])
	}
}
