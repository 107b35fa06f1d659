package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/zeebo/blake3"
)

// A seed is the first delta of a journal in a file, which travels by other means than
// the link: the newest version of every sector up to a record, and what is to be known
// of it. All integers are little-endian:
//
//	head:  | "AiSeed" | version u16 | length of the description u32 | reserved u32 |
//	       | description, JSON | CRC32C u32 over all before |
//	delta: | as Delta.Write makes it for an empty journal |
//	tail:  | length of the delta u64 | BLAKE3-256 over all before | CRC32C u32 over the tail | "AiSE" |
//
// Where it is taken in, the whole is read once and compared with its hash before the
// journal is touched; then it lands like any delta (landing.go), which verifies every
// version again and the history's own chain of epochs. What is sealed is carried sealed.
// Replication goes on from the record that the seed leads to.
const (
	seedMagic    = "AiSeed"
	seedEnd      = "AiSE"
	seedVersion  = 1
	seedHead     = 16
	seedTail     = 8 + 32 + 4 + 4
	maxSeedAbout = 64 << 10
)

// Seed is what a seed says of itself.
type Seed struct {
	Identity Identity
	Tenant   string // for people, like Group and Site
	Group    string
	Site     string    // where it was made
	To       Cursor    // the record that it leads to
	Time     time.Time // of that record
	Made     time.Time
	Bytes    int64 `json:",omitempty"` // of the file; known once it is made or read
}

// ExportSeed writes a seed that leads to the end of the history, once that is durable.
// about names the group and the site.
func (j *Journal) ExportSeed(ctx context.Context, w io.Writer, about Seed) (Seed, error) {
	s, err := j.exportSeed(ctx, w, about)
	if err != nil {
		return Seed{}, fmt.Errorf("export seed: %w", err)
	}
	return s, nil
}

func (j *Journal) exportSeed(ctx context.Context, w io.Writer, s Seed) (Seed, error) {
	if h := j.Head(); !h.IsZero() { // all that was written until now
		if err := j.WaitDurable(ctx, h.Position); err != nil {
			return s, err
		}
	}
	d, err := j.OpenDelta(ctx, Position{}, true)
	if err != nil {
		return s, err
	}
	defer d.Close()
	s.Identity, s.To, s.Time, s.Made, s.Bytes = j.identity, d.to.Cursor, d.to.Time, j.o.Now(), 0
	head, err := s.head()
	if err != nil {
		return s, err
	}
	out := &seedWriter{w: w, hash: blake3.New()}
	if _, err := out.Write(head); err != nil {
		return s, err
	}
	if err := d.Write(ctx, out, DeltaPlace{Run: 1}); err != nil {
		return s, err
	}
	tail := binary.LittleEndian.AppendUint64(nil, uint64(out.n-int64(len(head))))
	_, _ = out.hash.Write(tail) // a hash takes everything
	tail = out.hash.Sum(tail)
	tail = binary.LittleEndian.AppendUint32(tail, crc32.Checksum(tail, castagnoli))
	n, err := w.Write(append(tail, seedEnd...))
	s.Bytes = out.n + int64(n)
	return s, err
}

// seedWriter counts and hashes what it writes.
type seedWriter struct {
	w    io.Writer
	hash *blake3.Hasher
	n    int64
}

func (s *seedWriter) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	_, _ = s.hash.Write(p[:n]) // a hash takes everything
	s.n += int64(n)
	return n, err
}

func (s Seed) head() ([]byte, error) {
	about, err := json.Marshal(s)
	if err != nil || len(about) > maxSeedAbout {
		return nil, fmt.Errorf("describe seed in %d bytes: %w", len(about), errors.Join(err, ErrSeed))
	}
	b := append(make([]byte, 0, seedHead+len(about)+4), seedMagic...)
	b = binary.LittleEndian.AppendUint16(b, seedVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(about)))
	b = append(binary.LittleEndian.AppendUint32(b, 0), about...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), nil
}

// ReadSeed reads what a seed says of itself, and no more: it is not verified then.
func ReadSeed(r io.Reader) (Seed, error) {
	s, _, err := readSeedHead(r)
	if err != nil {
		return Seed{}, fmt.Errorf("read seed: %w", err)
	}
	return s, nil
}

// readSeedHead reads the head, whose length it tells. Lengths are checked before they
// take memory.
func readSeedHead(r io.Reader) (s Seed, size int64, err error) {
	b := make([]byte, seedHead)
	if _, err := io.ReadFull(r, b); err != nil {
		return s, 0, seedCut(err)
	}
	if string(b[:len(seedMagic)]) != seedMagic {
		return s, 0, fmt.Errorf("%w: it does not begin like one", ErrSeed)
	}
	if v := binary.LittleEndian.Uint16(b[6:]); v != seedVersion {
		return s, 0, fmt.Errorf("seed of version %d: %w", v, ErrIncompatible)
	}
	n := binary.LittleEndian.Uint32(b[8:])
	if n == 0 || n > maxSeedAbout || binary.LittleEndian.Uint32(b[12:]) != 0 {
		return s, 0, fmt.Errorf("%w: a description of %d bytes", ErrSeed, n)
	}
	rest := make([]byte, n+4)
	if _, err := io.ReadFull(r, rest); err != nil {
		return s, 0, seedCut(err)
	}
	about := rest[:n]
	if crc32.Update(crc32.Checksum(b, castagnoli), castagnoli, about) != binary.LittleEndian.Uint32(rest[n:]) {
		return s, 0, fmt.Errorf("%w: its description differs from its checksum", ErrSeed)
	}
	d := json.NewDecoder(bytes.NewReader(about))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil || s.To.IsZero() || s.Bytes != 0 {
		return s, 0, fmt.Errorf("%w: its description says nothing: %v", ErrSeed, err)
	}
	return s, seedHead + int64(n) + 4, nil
}

// seedCut is err, where the end of the file is none of a seed.
func seedCut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is cut off", ErrSeed)
	}
	return err
}

// CheckSeed reads a seed of size bytes to its end and compares it with its hash. It
// returns where the delta lies in it.
func CheckSeed(ctx context.Context, r io.ReaderAt, size int64) (Seed, *io.SectionReader, error) {
	s, delta, err := checkSeed(ctx, r, size)
	if err != nil {
		return Seed{}, nil, fmt.Errorf("check seed: %w", err)
	}
	return s, delta, nil
}

func checkSeed(ctx context.Context, r io.ReaderAt, size int64) (Seed, *io.SectionReader, error) {
	s, head, err := readSeedHead(io.NewSectionReader(r, 0, size))
	if err != nil {
		return s, nil, err
	}
	if size < head+seedTail {
		return s, nil, fmt.Errorf("%w: it is cut off", ErrSeed)
	}
	tail := make([]byte, seedTail)
	if _, err := r.ReadAt(tail, size-seedTail); err != nil && !errors.Is(err, io.EOF) {
		return s, nil, err
	}
	n := size - head - seedTail
	switch {
	case string(tail[seedTail-4:]) != seedEnd || crc32.Checksum(tail[:40], castagnoli) != binary.LittleEndian.Uint32(tail[40:]):
		return s, nil, fmt.Errorf("%w: it is cut off, or its end is damaged", ErrSeed)
	case binary.LittleEndian.Uint64(tail) != uint64(n):
		return s, nil, fmt.Errorf("%w: %d bytes of a delta, made with %d", ErrSeed, n, binary.LittleEndian.Uint64(tail))
	}
	hash, buf, all := blake3.New(), make([]byte, leafBytes), io.NewSectionReader(r, 0, size-seedTail+8)
	for {
		k, err := all.Read(buf)
		_, _ = hash.Write(buf[:k]) // a hash takes everything
		if errors.Is(err, io.EOF) {
			break
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return s, nil, err
		}
	}
	if !bytes.Equal(hash.Sum(nil), tail[8:40]) {
		return s, nil, fmt.Errorf("%w: its bytes differ from their hash", ErrSeed)
	}
	s.Bytes = size
	return s, io.NewSectionReader(r, head, n), nil
}

// ImportSeed takes a seed of size bytes in: j, which holds nothing, stands then durably
// at the record that the seed leads to. After an error, or a crash before that, it holds
// nothing as before. Errors: ErrSeed, ErrWrongJournal for another group's, ErrHistory,
// ErrFenced where a Writer is in charge, *DamageError, ErrFull.
func (j *Journal) ImportSeed(ctx context.Context, r io.ReaderAt, size int64) (Seed, error) {
	s, err := j.importSeed(ctx, r, size)
	if err != nil {
		return Seed{}, fmt.Errorf("import seed: %w", err)
	}
	return s, nil
}

func (j *Journal) importSeed(ctx context.Context, r io.ReaderAt, size int64) (Seed, error) {
	s, err := ReadSeed(io.NewSectionReader(r, 0, size))
	if err != nil {
		return s, err
	}
	if s.Identity != j.identity {
		return s, fmt.Errorf("%w: the seed is of group %s/%s", ErrWrongJournal, s.Tenant, s.Group)
	}
	if h := j.Head(); !h.IsZero() {
		return s, fmt.Errorf("%w: up to record %s", ErrHistory, h.Position)
	}
	s, delta, err := checkSeed(ctx, r, size)
	if err != nil {
		return s, err
	}
	l, err := j.OpenLanding(ctx, Position{}, nil)
	if err != nil {
		return s, err
	}
	defer l.Close()
	if l.Place() != (DeltaPlace{Run: 1}) {
		return s, fmt.Errorf("%w: what comes next is run %d", ErrHistory, l.Place().Run)
	}
	_, err = l.Take(ctx, delta, DeltaEnd{Cursor: s.To, Time: s.Time})
	return s, err
}
