package replicator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/novacron/afterimage/journal"
)

// A site that found damage asks a peer for the frame that holds a record. Either end
// of a connection asks, on a bidirectional stream of its own, one question a stream:
//
//	question                           answer
//	 0  "AIQ1"                          0  "AIR1"
//	 4  version u8 | reserved u24       4  version u8 | reserved u8 | code u16
//	 8  most bytes wanted u64           8  length of what follows u64
//	16  tenant [16]                    16  reserved u32
//	32  group  [16]                    20  CRC32C u32 over 0..20
//	48  stream [16]                    24  the frame as stored; with a code, why not
//	64  epoch id [16]
//	80  seq u64
//	88  reserved u32
//	92  CRC32C u32 over 0..92
//
// A peer gets frames of the groups that it is sent or sends, and of no others: for
// those it hears the same as for groups that do not exist. Who asks verifies all that
// comes. Sites that answer say so in Hello (featureFetch); the others are not asked.
const (
	questionBytes = 96
	answerBytes   = 24
	maxQuestions  = 2 // under way over one connection; a frame each is in memory

	featureFetch = uint64(1) << 0
)

// holder is a Source or Replica that gives single frames; *journal.Journal is one.
type holder interface {
	FrameFor(ctx context.Context, p journal.Position) (journal.Frame, error)
}

// FrameFor is the holder's, if the journal is one.
func (s journalSource[F, J]) FrameFor(ctx context.Context, p journal.Position) (journal.Frame, error) {
	if h, ok := any(s.j).(holder); ok {
		return h.FrameFor(ctx, p)
	}
	return journal.Frame{}, ErrUnknownGroup
}

type question struct {
	most  int64
	group journal.Identity
	at    journal.Position
}

func (q question) encode() []byte {
	b := make([]byte, questionBytes)
	copy(b, "AIQ1")
	b[4] = wireVersion
	binary.LittleEndian.PutUint64(b[8:], uint64(q.most))
	putIdentity(b[16:], q.group)
	copy(b[64:], q.at.Epoch[:])
	binary.LittleEndian.PutUint64(b[80:], uint64(q.at.Seq))
	return seal(b)
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
	case b[5]|b[6]|b[7] != 0 || binary.LittleEndian.Uint32(b[88:]) != 0:
		return q, fmt.Errorf("read question: reserved bytes are set: %w", ErrProtocol)
	case q.most <= 0 || q.at.Seq == 0 || q.at.Epoch.IsZero():
		return q, fmt.Errorf("read question: record %s, at most %d bytes: %w", q.at, q.most, ErrProtocol)
	}
	return q, nil
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
	defer func() {
		l.r.mu.Lock()
		defer l.r.mu.Unlock()
		l.r.links = slices.DeleteFunc(l.r.links, func(x *link) bool { return x == l })
	}()
	for {
		s, err := l.conn.AcceptStream(ctx)
		if err != nil {
			return fmt.Errorf("accept question: %w", err)
		}
		if err := l.reply(ctx, s); err != nil { // one at a time: the rest waits in the stream limit
			l.r.o.Log.Debug("question not answered", "peer", l.peer.Name, "err", err)
			s.CancelRead(quic.StreamErrorCode(CodeProtocol))
			s.CancelWrite(quic.StreamErrorCode(CodeProtocol))
		}
	}
}

// ask asks one question.
func (l *link) ask(ctx context.Context, q question) ([]byte, error) {
	s, err := l.conn.OpenStreamSync(ctx)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { s.CancelRead(quic.StreamErrorCode(CodeShutdown)) })
	defer stop()
	defer s.CancelRead(quic.StreamErrorCode(CodeShutdown))
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
func (l *link) reply(ctx context.Context, s *quic.Stream) error {
	if err := s.SetReadDeadline(time.Now().Add(l.r.o.HandshakeTimeout)); err != nil {
		return err
	}
	q, err := readQuestion(s)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { s.CancelWrite(quic.StreamErrorCode(CodeShutdown)) })
	defer stop()
	f, err := l.r.frameFor(ctx, l.peer.Name, q)
	if err != nil {
		text := clipText(err.Error(), maxTextBytes)
		head := answer{code: reasonOf(err), bytes: int64(len(text))}.encode()
		if _, err := s.Write(append(head, text...)); err != nil {
			return err
		}
		return s.Close()
	}
	if _, err := s.Write(answer{bytes: f.Bytes}.encode()); err != nil {
		return err
	}
	if err := l.peer.throttle.copyN(ctx, s, f.Reader, f.Bytes, make([]byte, chunkBytes), func(int) {}); err != nil {
		return err
	}
	return s.Close()
}

// frameFor finds the frame, if the peer may see its group.
func (r *Replicator) frameFor(ctx context.Context, peer string, q question) (journal.Frame, error) {
	r.mu.Lock()
	out, in := r.outbound[outKey{peer, q.group}], r.inbound[inKey{peer, q.group}]
	r.mu.Unlock()
	var of any
	switch {
	case out != nil:
		of = out.Source
	case in != nil:
		lag := in.snapshot()
		replica, err := r.o.Receive(peer, q.group, lag.Tenant, lag.Group)
		if err != nil && (!errors.Is(err, ErrNotReplica) || replica == nil) {
			return journal.Frame{}, ErrUnknownGroup
		}
		of = replica
	}
	h, ok := of.(holder)
	if !ok {
		return journal.Frame{}, ErrUnknownGroup
	}
	f, err := h.FrameFor(ctx, q.at)
	if err == nil && f.Bytes > q.most {
		err = fmt.Errorf("frame of %d bytes, wanted at most %d: %w", f.Bytes, q.most, ErrProtocol)
	}
	return f, err
}

// reasonOf is the code for why a frame is not given.
func reasonOf(err error) Code {
	var damage *journal.DamageError
	switch {
	case errors.Is(err, ErrUnknownGroup):
		return CodeUnknownGroup
	case errors.As(err, &damage):
		return CodeDamage
	case errors.Is(err, journal.ErrNoPoint), errors.Is(err, journal.ErrUnknownParent), errors.Is(err, journal.ErrNotContiguous), errors.Is(err, journal.ErrFenced), errors.Is(err, journal.ErrReclaimed):
		return CodeNoRecord
	}
	return CodeLocal
}
