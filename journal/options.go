package journal

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// SyncMode says what a reply to a write means.
type SyncMode uint8

// Modes. SyncProcess answers when the record is in the page cache of the segment
// file, which outlives this process; SyncPower after fdatasync.
const (
	SyncProcess SyncMode = iota
	SyncPower
)

// Options of Open; the zero value opens what is there.
type Options struct {
	FS           vfs.FS           // every file goes through it; nil: the operating system's
	Create       *Identity        // when the directory holds no journal: make one. nil: ErrNotFound
	Sync         SyncMode         // what a reply means
	SegmentBytes int64            // when a segment is sealed; default 64 MiB
	QuotaBytes   int64            // segments together; 0: no quota
	ReserveBytes int64            // free disk below which records are refused; default 64 MiB; negative: none
	Compress     Compression      // when payloads are packed; default CompressAuto
	Keys         KeyRing          // seals what this site records and opens what is sealed; nil: neither
	PoolBytes    int64            // segments written ahead, to this size; default one, when half of a segment is used; negative: none
	PoolReclaim  bool             // the pool takes reclaimed segments only: nothing is written ahead
	Now          func() time.Time // wall clock; default time.Now
	Uptime       Uptime           // what thinning holds Now to; default MachineUptime, none where Now is given
	Log          *slog.Logger     // default: discarded

	// AcceptLoss opens a journal of which records are lost that were durable: it is
	// cut where it last verifies, and what lies behind is kept in lost/ (salvage.go).
	AcceptLoss bool

	faults     faults
	keyCells   int64         // cells that a data key seals; default maxKeyCells
	gatherFor  time.Duration // that the committer waits for records to come together; default gatherFor; negative: none
	lonelyRest time.Duration // of syncLoop where nobody follows; default lonelyRest
	finishRest time.Duration // of finishLoop; default finishRest
	chunkBytes int64         // of the cache of resolved chunks; default chunkCacheBytes
	indexBytes int64         // of Pebble's cache; default indexCacheBytes
}

// faults are planted by tests of this package to see that a check catches them.
type faults struct {
	replyEarly      bool // reply before the record is written
	sendUnsynced    bool // stream frames that were not synced
	keyWithoutEpoch bool // index entries of all epochs under one ordinal
	carrySynced     bool // intervals survive an opening
	headerOnlyCRC   bool // cells are not checked
	skipDirSync     bool // a new segment's directory entry is not synced
	resetNonces     bool // nonces are counted from each opening on, under a key that outlives it
	tornMidFile     bool // whatever stands behind an invalid frame is a torn tail

	trimPastPin           bool // retention does not know of pins
	dropViewed            bool // a fold does not ask which views are open
	runPastPoint          bool // a run holds what came just after a point, not what the point saw
	skipReclaimedChain    bool // the chain is not checked where folded history ends
	rebuildWithoutLineage bool // an index built from runs does not know of their epochs
	quotaEarly            bool // what a fold will free is free before it is
	ignoreSectors         bool // a piece of a cell is taken for the whole cell
	diffAtGone            bool // a comparison takes a point that is gone for one that is kept

	deltaOlder     bool // a delta carries what came before the newest version
	landUnverified bool // a delta is installed as it comes
	landUnsynced   bool // a delta is listed in the site log before it is durable
	thinUnknown    bool // retention does not know that pins and cursors may be missing
	landForgetFork bool // a fold before a landing does not keep the record that the delta goes on from
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 64 << 20
	}
	if o.ReserveBytes == 0 {
		o.ReserveBytes = 64 << 20
	}
	if o.Now == nil {
		o.Now = time.Now
		if o.Uptime == nil {
			o.Uptime = MachineUptime
		}
	}
	if o.keyCells == 0 {
		o.keyCells = maxKeyCells
	}
	if o.gatherFor == 0 {
		o.gatherFor = gatherFor
	}
	if o.lonelyRest == 0 {
		o.lonelyRest = lonelyRest
	}
	if o.finishRest == 0 {
		o.finishRest = finishRest
	}
	if o.chunkBytes == 0 {
		o.chunkBytes = chunkCacheBytes
	}
	if o.indexBytes == 0 {
		o.indexBytes = indexCacheBytes
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func (o Options) validate() error {
	if o.SegmentBytes < 4*pageBytes {
		return fmt.Errorf("segments of %d bytes: want at least %d", o.SegmentBytes, 4*pageBytes)
	}
	if o.QuotaBytes < 0 {
		return fmt.Errorf("quota of %d bytes", o.QuotaBytes)
	}
	return nil
}
