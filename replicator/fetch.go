package replicator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/replicator/transport"
)

// A site that found damage asks a peer for the frame that holds a record, or for the
// stored bytes of a part of it (journal.Cells). Either end
// of a connection asks, on a bidirectional stream of its own, one question a stream:
//
//	question                           answer
//	 0  "AIQ1"                          0  "AIR1"
//	 4  version u8 | kind u8 | 0 u16    4  version u8 | reserved u8 | code u16
//	 8  most bytes wanted u64           8  length of what follows u64
//	16  tenant [16]                    16  reserved u32
//	32  group  [16]                    20  CRC32C u32 over 0..20
//	48  stream [16]                    24  the bytes as stored; with a code, why not
//	64  epoch id [16]
//	80  seq u64
//	88  reserved u32
//	92  CRC32C u32 over 0..92
//	    of kind 2: consult.go; of kind 1, for stored bytes:
//	96  volume [16]
//	112 offset u64
//	120 length u32
//	124 CRC32C u32 over 96..124
//
// A peer gets frames of the groups that it is sent or sends, and of no others: for
// those it hears the same as for groups that do not exist. Who asks verifies all that
// comes. Sites that answer say so in Hello (featureFetch, and featureCells for
// kind 1); the others are not asked.
const (
	questionBytes = 96
	cellsBytes    = 32
	answerBytes   = 24
	maxQuestions  = 2 // under way over one connection; a frame each is in memory

	featureFetch  = uint64(1) << 0
	featureCells  = uint64(1) << 1
	featureDelta  = uint64(1) << 2 // offers of deltas are understood (delta.go)
	featureRotate = uint64(1) << 4 // next keys are understood (rotate.go)

	kindFrame = 0
	kindCells = 1
)

// holder is a Source or Replica that gives single frames and parts of records;
// *journal.Journal is one.
type holder interface {
	FrameFor(ctx context.Context, p journal.Position) (journal.Frame, error)
	StoredCells(ctx context.Context, c journal.Cells) ([]byte, error)
}

// FrameFor is the holder's, if the journal is one.
func (s journalSource[F, J]) FrameFor(ctx context.Context, p journal.Position) (journal.Frame, error) {
	if h, ok := any(s.j).(holder); ok {
		return h.FrameFor(ctx, p)
	}
	return journal.Frame{}, ErrUnknownGroup
}

// StoredCells is the holder's, if the journal is one.
func (s journalSource[F, J]) StoredCells(ctx context.Context, c journal.Cells) ([]byte, error) {
	if h, ok := any(s.j).(holder); ok {
		return h.StoredCells(ctx, c)
	}
	return nil, ErrUnknownGroup
}

type question struct {
	most  int64
	group journal.Identity
	at    journal.Position
	part  *journal.Cells // nil: the frame is asked for
	about *consultation  // not nil: neither is (consult.go)
}

func (q question) encode() []byte {
	b := make([]byte, questionBytes)
	copy(b, "AIQ1")
	b[4] = wireVersion
	binary.LittleEndian.PutUint64(b[8:], uint64(q.most))
	putIdentity(b[16:], q.group)
	copy(b[64:], q.at.Epoch[:])
	binary.LittleEndian.PutUint64(b[80:], uint64(q.at.Seq))
	switch {
	case q.about != nil:
		b[5] = kindConsult
		return append(seal(b), q.about.encode()...)
	case q.part == nil:
		return seal(b)
	}
	b[5] = kindCells
	c := make([]byte, cellsBytes)
	copy(c, q.part.Volume[:])
	binary.LittleEndian.PutUint64(c[16:], uint64(q.part.Extent.Offset))
	binary.LittleEndian.PutUint32(c[24:], uint32(q.part.Extent.Length))
	return append(seal(b), seal(c)...)
}

func readQuestion(r io.Reader) (question, error) {
	b := make([]byte, questionBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return question{}, fmt.Errorf("read question: %w", err)
	}
	if err := checkHeader(b, "AIQ1"); err != nil {
		return question{}, fmt.Errorf("read question: %w", err)
	}
	q := question{most: int64(binary.LittleEndian.Uint64(b[8:])), group: getIdentity(b[16:]),
		at: journal.Position{Epoch: journal.EpochID(b[64:80]), Seq: journal.Seq(binary.LittleEndian.Uint64(b[80:]))}}
	switch {
	case b[5] > kindConsult || b[6]|b[7] != 0 || binary.LittleEndian.Uint32(b[88:]) != 0:
		return q, fmt.Errorf("read question: reserved bytes are set: %w", ErrProtocol)
	case q.most <= 0 || (b[5] != kindConsult && (q.at.Seq == 0 || q.at.Epoch.IsZero())):
		return q, fmt.Errorf("read question: record %s, at most %d bytes: %w", q.at, q.most, ErrProtocol)
	}
	var err error
	switch b[5] {
	case kindCells:
		q.part, err = readPart(r, q.at)
	case kindConsult:
		q.about, err = readConsultation(r)
	}
	return q, err
}

// readPart reads what a question for stored bytes names beside the record.
func readPart(r io.Reader, at journal.Position) (*journal.Cells, error) {
	b := make([]byte, cellsBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("read question: %w", err)
	}
	n := cellsBytes - crcBytes
	if crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]) {
		return nil, fmt.Errorf("read question: checksum differs: %w", ErrProtocol)
	}
	c := &journal.Cells{Position: at, Volume: cbt.VolumeID(b[:16]),
		Extent: cbt.Extent{Offset: int64(binary.LittleEndian.Uint64(b[16:])), Length: int64(binary.LittleEndian.Uint32(b[24:]))}}
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("read question: %w: %w", err, ErrProtocol)
	}
	return c, nil
}

type answer struct {
	code  Code
	bytes int64
}

func (a answer) encode() []byte {
	b := make([]byte, answerBytes)
	copy(b, "AIR1")
	b[4] = wireVersion
	binary.LittleEndian.PutUint16(b[6:], uint16(a.code))
	binary.LittleEndian.PutUint64(b[8:], uint64(a.bytes))
	return seal(b)
}

// readAnswer reads an answer's head; most bounds what may follow.
func readAnswer(r io.Reader, most int64) (answer, error) {
	b := make([]byte, answerBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return answer{}, fmt.Errorf("read answer: %w", err)
	}
	if err := checkHeader(b, "AIR1"); err != nil {
		return answer{}, fmt.Errorf("read answer: %w", err)
	}
	a := answer{code: Code(binary.LittleEndian.Uint16(b[6:])), bytes: int64(binary.LittleEndian.Uint64(b[8:]))}
	if a.code != CodeNone {
		most = maxTextBytes
	}
	switch {
	case b[5] != 0 || binary.LittleEndian.Uint32(b[16:]) != 0:
		return a, fmt.Errorf("read answer: reserved bytes are set: %w", ErrProtocol)
	case a.bytes < 0 || a.bytes > most || (a.code == CodeNone && a.bytes == 0):
		return a, fmt.Errorf("read answer: %d bytes, at most %d: %w", a.bytes, most, ErrProtocol)
	}
	return a, nil
}

// Fetch asks a connected peer for the frame that holds the record at p, as stored
// there. Nothing of it is trusted: the caller verifies it. Errors: *RefusedError with
// the peer's reason, ErrNotConnected.
func (r *Replicator) Fetch(ctx context.Context, peer string, id journal.Identity, p journal.Position) ([]byte, error) {
	l := r.linkTo(peer)
	if l == nil {
		return nil, fmt.Errorf("fetch record %s from %s: %w", p, peer, ErrNotConnected)
	}
	b, err := l.ask(ctx, question{most: r.o.MaxFrameBytes, group: id, at: p})
	if err != nil {
		return nil, fmt.Errorf("fetch record %s from %s: %w", p, peer, err)
	}
	return b, nil
}

// FetchCells asks a connected peer for the stored bytes that c names. Nothing of them
// is trusted: the caller verifies them. Errors: *RefusedError with the peer's reason,
// ErrNotConnected, also where the peer is of a version that gives none.
func (r *Replicator) FetchCells(ctx context.Context, peer string, id journal.Identity, c journal.Cells) ([]byte, error) {
	l := r.linkTo(peer)
	if l == nil || l.theirs&featureCells == 0 {
		return nil, fmt.Errorf("fetch %s from %s: %w", c, peer, ErrNotConnected)
	}
	b, err := l.ask(ctx, question{most: journal.MaxCellsBytes, group: id, at: c.Position, part: &c})
	if err != nil {
		return nil, fmt.Errorf("fetch %s from %s: %w", c, peer, err)
	}
	return b, nil
}

// linkTo is the newest connection with a peer that answers questions.
func (r *Replicator) linkTo(peer string) *link {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.links) - 1; i >= 0; i-- {
		if r.links[i].peer.Name == peer {
			return r.links[i]
		}
	}
	return nil
}

// attend answers the peer's questions until the connection ends, and lets ours be
// asked meanwhile.
func (l *link) attend(ctx context.Context) error {
	if l.theirs&featureFetch == 0 {
		return nil
	}
	l.r.mu.Lock()
	l.r.links = append(l.r.links, l)
	l.r.mu.Unlock()
	l.announce()
	defer func() {
		l.r.mu.Lock()
		defer l.r.mu.Unlock()
		l.r.links = slices.DeleteFunc(l.r.links, func(x *link) bool { return x == l })
	}()
	for {
		s, err := l.conn.NextQuestion(ctx)
		if err != nil {
			return fmt.Errorf("accept question: %w", err)
		}
		err = l.reply(ctx, s) // one at a time: the rest waits in the stream limit
		if err == nil {
			err = l.readOut(s)
		}
		if err != nil {
			l.r.o.Log.Debug("question not answered", "peer", l.peer.Name, "err", err)
			s.Cancel()
		}
	}
}

// ask asks one question.
func (l *link) ask(ctx context.Context, q question) ([]byte, error) {
	s, err := l.conn.Ask(ctx)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Cancel)
	defer stop()
	defer s.Cancel()
	if _, err := s.Write(q.encode()); err != nil {
		return nil, fmt.Errorf("ask: %w", err)
	}
	if err := s.Close(); err != nil {
		return nil, fmt.Errorf("ask: %w", err)
	}
	a, err := readAnswer(s, q.most)
	if err != nil {
		return nil, err
	}
	b, err := readBounded(s, int(a.bytes))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if a.code != CodeNone {
		return nil, &RefusedError{Peer: l.peer.Name, Code: a.code, Text: string(bytes.ToValidUTF8(b, []byte("?")))}
	}
	return b, nil
}

// reply answers one question, at the rate that frames go to the peer.
func (l *link) reply(ctx context.Context, s transport.Stream) error {
	if err := s.SetReadDeadline(time.Now().Add(l.r.o.HandshakeTimeout)); err != nil {
		return err
	}
	q, err := readQuestion(s)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, s.Cancel)
	defer stop()
	look := l.r.find
	if q.about != nil {
		look = l.r.consulted
	}
	f, n, err := look(ctx, l.peer.Name, q)
	if err != nil {
		text := clipText(err.Error(), maxTextBytes)
		head := answer{code: reasonOf(err), bytes: int64(len(text))}.encode()
		if _, err := s.Write(append(head, text...)); err != nil {
			return err
		}
		return s.Close()
	}
	if _, err := s.Write(answer{bytes: n}.encode()); err != nil {
		return err
	}
	if err := l.peer.allowance.copyN(ctx, s, f, n, make([]byte, chunkBytes), func(int) {}); err != nil {
		return err
	}
	return s.Close()
}

// readOut reads the end of a question that was answered. Until then its stream counts
// against the limit, and the peer could ask nothing more one day: the end may come in a
// packet of its own.
func (l *link) readOut(s transport.Stream) error {
	if err := s.SetReadDeadline(time.Now().Add(l.r.o.HandshakeTimeout)); err != nil {
		return err
	}
	n, err := s.Read(make([]byte, 1))
	if n > 0 {
		return fmt.Errorf("read question: more follows: %w", ErrProtocol)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("read question: %w", err)
	}
	return nil // it ended, or who asked has seen enough
}

// find finds what is asked for, if the peer may see its group.
func (r *Replicator) find(ctx context.Context, peer string, q question) (io.Reader, int64, error) {
	h, err := r.holderFor(peer, q.group)
	if err != nil {
		return nil, 0, err
	}
	var found io.Reader
	var n int64
	if q.part != nil {
		var b []byte
		b, err = h.StoredCells(ctx, *q.part)
		found, n = bytes.NewReader(b), int64(len(b))
	} else {
		var f journal.Frame
		f, err = h.FrameFor(ctx, q.at)
		found, n = f.Reader, f.Bytes
	}
	if err == nil && n > q.most {
		err = fmt.Errorf("%d bytes, wanted at most %d: %w", n, q.most, ErrProtocol)
	}
	return found, n, err
}

// holderFor is who gives a peer frames of a group.
func (r *Replicator) holderFor(peer string, group journal.Identity) (holder, error) {
	r.mu.Lock()
	out, in := r.outbound[outKey{peer, group}], r.inbound[inKey{peer, group}]
	r.mu.Unlock()
	var of any
	switch {
	case out != nil:
		of = out.Source
	case in != nil:
		lag := in.snapshot()
		replica, err := r.o.Receive(peer, group, lag.Tenant, lag.Group)
		if err != nil && (!errors.Is(err, ErrNotReplica) || replica == nil) {
			return nil, ErrUnknownGroup
		}
		of = replica
	}
	h, ok := of.(holder)
	if !ok {
		return nil, ErrUnknownGroup
	}
	return h, nil
}

// reasonOf is the code for why what is asked for is not given.
func reasonOf(err error) Code {
	var damage *journal.DamageError
	switch {
	case errors.Is(err, ErrUnknownGroup):
		return CodeUnknownGroup
	case errors.As(err, &damage):
		return CodeDamage
	case errors.Is(err, journal.ErrNoPoint), errors.Is(err, journal.ErrUnknownParent), errors.Is(err, journal.ErrNotContiguous), errors.Is(err, journal.ErrFenced), errors.Is(err, journal.ErrReclaimed):
		return CodeNoRecord
	case errors.Is(err, ErrDeclined):
		return CodeDeclined
	}
	return CodeLocal
}
