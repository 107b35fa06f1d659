package replicator

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/novacron/afterimage/journal"
)

// Sentinels; all are wrapped with their circumstances.
var (
	// ErrNotReplica is what Options.Receive wraps for a group that this site
	// holds but must not append to: it is its primary, or not yet committed.
	ErrNotReplica = errors.New("this site is not a replica of the group")
	// ErrUnknownGroup is what Options.Receive wraps for a group it does not take.
	ErrUnknownGroup = errors.New("group is not configured for this peer")
	// ErrNotDurable: a source offered a frame that power loss could still take from it.
	ErrNotDurable = errors.New("frame is not durable at the source")
	// ErrProtocol: the peer sent what no correct peer sends.
	ErrProtocol = errors.New("peer broke the protocol")
	// ErrStalled: the connection lives but nothing moves.
	ErrStalled = errors.New("connection makes no progress")
	// ErrSuperseded: a newer session of the same group took over.
	ErrSuperseded = errors.New("superseded by a newer session")
	// ErrWithdrawn: the group is no longer replicated in this direction.
	ErrWithdrawn = errors.New("group withdrawn")
	// ErrNotConnected: there is no connection with the peer, or it gives no frames.
	ErrNotConnected = errors.New("the peer is not connected or does not give frames")
	// ErrNoDelta: one of the two sites cannot do with deltas.
	ErrNoDelta = errors.New("this site makes and takes no deltas")
	// ErrHistoryLost: the peer holds durably what this source no longer has.
	ErrHistoryLost = errors.New("source lost history that its peer holds")
)

// PinError: a peer's key is not the one configured. Seen is zero when it showed none.
type PinError struct {
	Peer     string   // the configured name, when we dialled it
	Address  net.Addr // where it called from, when it dialled us
	Expected []Pin    // empty: the key is in no peer's configuration
	Seen     Pin
}

func (e *PinError) Error() string {
	seen := "no ed25519 key"
	if !e.Seen.IsZero() {
		seen = e.Seen.String()
	}
	if e.Peer != "" {
		return fmt.Sprintf("verify peer %s: expected pin %s, it showed %s", e.Peer, e.Expected[0], seen)
	}
	return fmt.Sprintf("verify caller at %v: it showed %s, which is no configured peer's pin", e.Address, seen)
}

// Conflict: two histories of a group exclude each other. Replication of the
// group halts both ways; both histories stay as they are until a person decides.
type Conflict struct {
	Peer                 string
	Tenant, Group        string
	Identity             journal.Identity
	Kind                 journal.RelationKind // of the peer's history to ours
	Common               journal.Cursor       // furthest position both share
	Ours, Theirs         []journal.Branch     // whole histories, oldest first
	OursHead, TheirsHead journal.EpochID
	Cause                error // ErrHistoryLost, or nil for a split brain
}

func (c *Conflict) Error() string {
	what := "split brain"
	if c.Cause != nil {
		what = c.Cause.Error()
	}
	return fmt.Sprintf("replicate %s/%s with %s: %s after seq %d: here %s; there %s", c.Tenant, c.Group, c.Peer, what,
		c.Common.Seq, history(c.Ours, c.OursHead), history(c.Theirs, c.TheirsHead))
}

func (c *Conflict) Unwrap() error { return c.Cause }

// history is a branch list on one line, the last few epochs of it.
func history(branches []journal.Branch, head journal.EpochID) string {
	const shown = 4
	var parts []string
	for _, b := range branches[max(0, len(branches)-shown):] {
		mark := ""
		if b.ID == head {
			mark = "*"
		}
		parts = append(parts, fmt.Sprintf("epoch %d%s (%x, %s) %d..%d", b.Number, mark, b.ID[:4], b.Site, b.First(), b.Last.Seq))
	}
	if len(parts) == 0 {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// RefusedError: the peer turned a group, or the whole connection, down.
type RefusedError struct {
	Peer string
	Code Code
	Text string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("replicate with %s: refused (%s): %s", e.Peer, e.Code, e.Text)
}

// Is lets a refusal match the sentinel that its sender met.
func (e *RefusedError) Is(target error) bool {
	switch e.Code {
	case CodeUnknownGroup:
		return target == ErrUnknownGroup
	case CodeNotReplica:
		return target == ErrNotReplica
	case CodeWithdrawn:
		return target == ErrWithdrawn
	case CodeSuperseded:
		return target == ErrSuperseded
	case CodeRevoked:
		return target == ErrRevoked
	case CodeExpired:
		return target == ErrInviteExpired
	case CodeInvite:
		return target == ErrInvite
	case CodeSourced:
		return target == ErrSourced
	case CodeDeclined:
		return target == ErrDeclined
	}
	return false
}

// Code says why on the wire. Values are append-only.
type Code uint16

// Codes of Refuse and Bye messages and of closed connections and streams.
const (
	CodeNone         Code = 0
	CodeShutdown     Code = 1  // the peer's replicator ends
	CodeProtocol     Code = 2  // a message that makes no sense
	CodeVersion      Code = 3  // no common version
	CodeFeatures     Code = 4  // an incompatible feature is not known
	CodeUnpinned     Code = 5  // the key is in no peer's configuration
	CodeUnknownGroup Code = 6  // ErrUnknownGroup
	CodeNotReplica   Code = 7  // ErrNotReplica
	CodeConflict     Code = 8  // *Conflict; the message carries the history
	CodeAppend       Code = 9  // the journal did not take a frame
	CodeDamage       Code = 10 // a frame's bytes did not verify
	CodeBusy         Code = 11 // too many groups at once
	CodeWithdrawn    Code = 12 // ErrWithdrawn
	CodeStalled      Code = 13 // ErrStalled
	CodeSuperseded   Code = 14 // ErrSuperseded
	CodeLocal        Code = 15 // reading the source failed
	CodeNoRecord     Code = 16 // the record asked for is not held, or was folded
	CodeRevoked      Code = 17 // ErrRevoked
	CodeExpired      Code = 18 // ErrInviteExpired
	CodeInvite       Code = 19 // ErrInvite
	CodeSourced      Code = 20 // ErrSourced
	CodeDeclined     Code = 21 // ErrDeclined
	CodeInFrame      Code = 22 // errInFrame
)

var codeNames = [...]string{"none", "shutdown", "protocol", "version", "features", "unpinned", "unknown-group", "not-replica",
	"conflict", "append", "damage", "busy", "withdrawn", "stalled", "superseded", "local", "no-record", "revoked", "expired", "invite", "sourced", "declined", "in-frame"}

// String is a stable word; codes of later versions print as numbers.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code-%d", uint16(c))
}
