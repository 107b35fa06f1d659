package journal

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"github.com/novacron/afterimage/cbt"
)

// Seq is a record's place, dense within a lineage, from 1.
type Seq uint64

func (s Seq) String() string { return strconv.FormatUint(uint64(s), 10) }

// EpochID names one reign of one primary; it is random.
type EpochID cbt.ID

func (e EpochID) String() string { return cbt.ID(e).String() }

// Short is the first 8 digits, for tables and logs.
func (e EpochID) Short() string { return cbt.ID(e).Short() }

// IsZero reports whether e names no epoch.
func (e EpochID) IsZero() bool { return cbt.ID(e).IsZero() }

// MarshalText is String.
func (e EpochID) MarshalText() ([]byte, error) { return cbt.ID(e).MarshalText() }

// UnmarshalText accepts what String prints.
func (e *EpochID) UnmarshalText(b []byte) error { return (*cbt.ID)(e).UnmarshalText(b) }

// Chain is BLAKE3 over the chain value before and a frame as stored.
type Chain [32]byte

// unknown reports that c, the value before record next, was lost to damage.
func (c Chain) unknown(next Seq) bool { return c == Chain{} && next > 1 }

func (c Chain) String() string { return hex.EncodeToString(c[:]) }

// MarshalText is String.
func (c Chain) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText accepts what String prints.
func (c *Chain) UnmarshalText(b []byte) error {
	if hex.DecodedLen(len(b)) != len(c) {
		return fmt.Errorf("parse chain value: want %d hexadecimal digits", 2*len(c))
	}
	_, err := hex.Decode(c[:], b)
	return err
}

// Position is a record's full name: two sites may both have written H+1. The
// zero Position lies before the first record of a journal.
type Position struct {
	Epoch EpochID `json:"epoch"`
	Seq   Seq     `json:"seq"`
}

func (p Position) String() string { return p.Epoch.Short() + "." + p.Seq.String() }

// IsZero reports whether p lies before everything.
func (p Position) IsZero() bool { return p == Position{} }

// Cursor is a Position with the chain value of the frame that holds it.
type Cursor struct {
	Position
	Chain Chain `json:"chain"`
}

// Epoch is one reign of one primary over a stream. Parent is the last record of
// the history that it continues; zero for the first epoch.
type Epoch struct {
	Number uint64    `json:"number"` // rises along every lineage
	ID     EpochID   `json:"id"`
	Parent Cursor    `json:"parent"`
	Site   string    `json:"site"`
	Begun  time.Time `json:"begun"`
}

// First is the seq of e's first record.
func (e Epoch) First() Seq { return e.Parent.Seq + 1 }

// Branch is an epoch and how far it is held here. Last.Seq is Parent.Seq while
// nothing of it is held.
type Branch struct {
	Epoch
	Last Cursor `json:"last"`
}

// Identity says whose journal this is.
type Identity struct {
	Tenant cbt.ID `json:"tenant"`
	Group  cbt.ID `json:"group"`
	Stream cbt.ID `json:"stream"`
}
