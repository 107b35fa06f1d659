package replicator

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/novacron/afterimage/journal"
)

// Sites that share a group also ask each other about it: where the other's history
// ends, whether it takes the group over. What is asked and answered are words of the
// sites (Options.Consult); here they are bytes. A question of kind 2 goes on with
//
//	96  length of topic u8 | 0 [3]
//	100 length of text u32
//	104 CRC32C u32 over topic and text
//	108 CRC32C u32 over 96..108
//	112 topic, text
//
// and the answer is as in fetch.go. Who answers knows by its key who asks.
const (
	kindConsult     = 2
	consultBytes    = 16
	maxTopicBytes   = 64
	maxConsultBytes = 1 << 20

	featureConsult = uint64(1) << 8

	// consultLimit bounds how long an answer is worked on: others wait behind it.
	consultLimit = 30 * time.Second
)

// ErrDeclined is what Options.Consult wraps where the answer is no: its text goes to
// the peer, where the *RefusedError matches it.
var ErrDeclined = errors.New("declined")

// consultation is what a question of kind 2 asks.
type consultation struct {
	topic string
	text  []byte
}

func (c *consultation) encode() []byte {
	b := make([]byte, consultBytes, consultBytes+len(c.topic)+len(c.text))
	b[0] = byte(len(c.topic))
	binary.LittleEndian.PutUint32(b[4:], uint32(len(c.text)))
	body := append([]byte(c.topic), c.text...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(body, castagnoli))
	return append(seal(b), body...)
}

func readConsultation(r io.Reader) (*consultation, error) {
	b := make([]byte, consultBytes)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("read question: %w", err)
	}
	n := consultBytes - crcBytes
	topic, text := int(b[0]), int64(binary.LittleEndian.Uint32(b[4:]))
	switch {
	case crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]):
		return nil, fmt.Errorf("read question: checksum differs: %w", ErrProtocol)
	case b[1]|b[2]|b[3] != 0 || topic == 0 || topic > maxTopicBytes || text > maxConsultBytes:
		return nil, fmt.Errorf("read question: topic of %d bytes, text of %d: %w", topic, text, ErrProtocol)
	}
	body, err := readBounded(r, topic+int(text))
	if err != nil {
		return nil, fmt.Errorf("read question: %w", err)
	}
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[8:]) {
		return nil, fmt.Errorf("read question: checksum of the text differs: %w", ErrProtocol)
	}
	return &consultation{string(body[:topic]), body[topic:]}, nil
}

// Consult asks a connected peer about a group that the two share. Errors:
// *RefusedError with the peer's reason (ErrDeclined where it says no), and
// ErrNotConnected, also where the peer is of a version that is not asked. Without an
// answer it is not known whether the peer has heard the question.
func (r *Replicator) Consult(ctx context.Context, peer string, id journal.Identity, topic string, text []byte) ([]byte, error) {
	l := r.linkTo(peer)
	if l == nil || l.theirs&featureConsult == 0 {
		return nil, fmt.Errorf("ask %s about %s: %w", peer, topic, ErrNotConnected)
	}
	if len(topic) == 0 || len(topic) > maxTopicBytes || len(text) > maxConsultBytes {
		return nil, fmt.Errorf("ask %s about %q: %d bytes: %w", peer, topic, len(text), ErrProtocol)
	}
	b, err := l.ask(ctx, question{most: maxConsultBytes, group: id, about: &consultation{topic, text}})
	if err != nil {
		return nil, fmt.Errorf("ask %s about %s: %w", peer, topic, err)
	}
	return b, nil
}

// consulted is this site's answer to a peer.
func (r *Replicator) consulted(ctx context.Context, peer string, q question) (io.Reader, int64, error) {
	if r.o.Consult == nil {
		return nil, 0, ErrUnknownGroup
	}
	ctx, cancel := context.WithTimeout(ctx, consultLimit)
	defer cancel()
	b, err := r.o.Consult(ctx, peer, q.group, q.about.topic, q.about.text)
	if err == nil && (len(b) == 0 || int64(len(b)) > q.most) {
		err = fmt.Errorf("answer about %s: %d bytes, wanted at most %d: %w", q.about.topic, len(b), q.most, ErrProtocol)
	}
	return bytes.NewReader(b), int64(len(b)), err
}
