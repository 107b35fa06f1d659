package site

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/embedded"
	"github.com/novacron/afterimage/cbt/libvirt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/cbt/qemu"
	"github.com/novacron/afterimage/journal"
	"github.com/novacron/afterimage/recovery"
	"github.com/novacron/afterimage/recovery/evidence"
	"github.com/novacron/afterimage/recovery/fence"
	"github.com/novacron/afterimage/recovery/runbook"
	"github.com/novacron/afterimage/replicator"
	"github.com/novacron/afterimage/site/fault"
)

// Causes with which contexts of this package end.
var (
	errStopping = errors.New("the site is stopping")
	errDetached = errors.New("the group is being closed")
	errClosed   = errors.New("the view was closed")

	errRewinding = errors.New("the group is being rewound")
	errPivoting  = errors.New("the machine's disks become local")
	errRewound   = fmt.Errorf("the disk was rewound since it was opened: %w", nbd.ESHUTDOWN)
)

// codes maps what the packages below return to what a user is told. The first
// row that matches holds; codes_test.go compares it with their sentinels.
var codes = []struct {
	err  error
	code fault.Code
}{
	{journal.ErrNotFound, fault.JournalAbsent},
	{journal.ErrWrongJournal, fault.JournalForeign},
	{journal.ErrLocked, fault.JournalLocked},
	{journal.ErrFull, fault.JournalFull},
	{cbt.ErrDiskFull, fault.JournalFull},
	{syscall.ENOSPC, fault.JournalFull},
	{journal.ErrFenced, fault.EpochFenced},
	{journal.ErrLowerEpoch, fault.EpochFenced},
	{journal.ErrReadOnly, fault.JournalFormat},
	{journal.ErrIncompatible, fault.JournalFormat},
	{journal.ErrUnknownParent, fault.PeerDiverged},
	{journal.ErrNotContiguous, fault.PeerProtocol},
	{journal.ErrRolledBack, fault.JournalRolledBack},
	{journal.ErrMissingSegment, fault.SegmentMissing},
	{journal.ErrTailLost, fault.HistoryLost},
	{journal.ErrRunLost, fault.RunLost},
	{journal.ErrSiteLogLost, fault.SiteLogLost},
	{journal.ErrNoPoint, fault.PointUnknown},
	{journal.ErrUnknownVolume, fault.VolumeUnknown},
	{journal.ErrOutOfRange, fault.Unexpected},
	{journal.ErrBadAt, fault.AtSyntax},
	{journal.ErrRetained, fault.HistoryLocked},
	{journal.ErrShredded, fault.KeyDestroyed},
	{journal.ErrNoKey, fault.KeyMissing},
	{journal.ErrWrongKey, fault.KeyWrong},
	{journal.ErrReclaimed, fault.HistoryThinned},
	{journal.ErrBusy, fault.OperationBusy},
	{journal.ErrNoPin, fault.PinUnknown},
	{journal.ErrSeed, fault.SeedTrouble},
	{journal.ErrHistory, fault.SeedLate},
	{journal.ErrFailed, fault.JournalStopped},
	{journal.ErrClosed, fault.JournalStopped},
	{replicator.ErrHistoryLost, fault.HistoryLost},
	{replicator.ErrNotConnected, fault.PeerUnreachable},
	{replicator.ErrNoDelta, fault.HistoryThinned},
	{replicator.ErrTimetable, fault.ConfigValue},
	{replicator.ErrUnknownPeer, fault.PeerUnknown},
	{replicator.ErrRevoked, fault.PeerPin},
	{replicator.ErrRekeyed, fault.PeerUnreachable}, // for the moment until sessions begin anew
	{replicator.ErrInviteExpired, fault.TokenTrouble},
	{replicator.ErrInvite, fault.TokenTrouble},
	{replicator.ErrToken, fault.TokenTrouble},
	{replicator.ErrDeclined, fault.HandoverTrouble},
	{replicator.ErrSourced, fault.OperationBusy},
	{replicator.ErrNotReplica, fault.NotReplica},
	{replicator.ErrUnknownGroup, fault.GroupUnknown},
	{replicator.ErrNotDurable, fault.PeerProtocol},
	{replicator.ErrProtocol, fault.PeerProtocol},
	{replicator.ErrStalled, fault.PeerUnreachable},
	{replicator.ErrSuperseded, fault.OperationBusy},
	{replicator.ErrSourced, fault.OperationBusy},
	{replicator.ErrWithdrawn, fault.PeerUnreachable},
	{qemu.ErrNode, fault.TapTrouble},
	{qemu.ErrNBDServerBusy, fault.TapTrouble},
	{qemu.ErrMonitor, fault.TapTrouble},
	{qemu.ErrOptions, fault.TapTrouble},
	{qemu.ErrAgent, fault.QuiesceTrouble},
	{qemu.ErrAgentRefused, fault.QuiesceTrouble},
	{libvirt.ErrNoDomain, fault.TapTrouble},
	{libvirt.ErrNotRunning, fault.TapTrouble},
	{libvirt.ErrExists, fault.TapTrouble},
	{libvirt.ErrURI, fault.TapTrouble},
	{libvirt.ErrConnection, fault.TapTrouble},
	{libvirt.ErrNoDisk, fault.TapTrouble},
	{libvirt.ErrReply, fault.TapTrouble},
	{embedded.ErrImage, fault.ImageTrouble},
	{embedded.ErrThinned, fault.HistoryThinned},
	{embedded.ErrMoving, fault.OperationBusy},
	{embedded.ErrDevice, fault.ImageTrouble},
	{embedded.ErrWriteLost, fault.RestoreDiffers},
	{recovery.ErrUnfenced, fault.NotFenced},
	{recovery.ErrRefused, fault.PrimaryAlive},
	{recovery.ErrNotNow, fault.RoleForbids},
	{recovery.ErrOtherPromotion, fault.OperationBusy},
	{recovery.ErrNotReigning, fault.NotPrimary},
	{recovery.ErrBehindFork, fault.RewindBehindFork},
	{recovery.ErrNotBetween, fault.BisectBounds},
	{recovery.ErrMachine, fault.MachineTrouble},
	{recovery.ErrNotRunning, fault.MachineTrouble},
	{recovery.ErrWrongMachine, fault.MachineTrouble},
	{recovery.ErrExited, fault.MachineTrouble},
	{recovery.ErrInVain, fault.MachineTrouble},
	{recovery.ErrUnhealthy, fault.MachineTrouble},
	{recovery.ErrNoScreen, fault.MachineTrouble},
	{recovery.ErrDrive, fault.RewindElsewhere},
	{recovery.ErrWriteLost, fault.RestoreDiffers},
	{recovery.ErrUnread, fault.HandoverTrouble},
	{recovery.ErrUnsteady, fault.HandoverTrouble},
	{recovery.ErrExists, fault.FileExists},
	{recovery.ErrNotRegular, fault.FileExists},
	{recovery.ErrNoTool, fault.ToolMissing},
	{recovery.ErrDiffers, fault.RestoreDiffers},
	{fence.ErrLiar, fault.NotFenced},
	{fence.ErrRefused, fault.NotFenced},
	{fence.ErrUnreachable, fault.NotFenced},
	{fence.ErrStatement, fault.NotFenced},
	{runbook.ErrNoRun, fault.RunUnknown},
	{runbook.ErrEnded, fault.RunOver},
	{runbook.ErrRunning, fault.OperationBusy},
	{runbook.ErrLog, fault.RunDamaged},
	{runbook.ErrStep, fault.RunHalted},
	{runbook.ErrAsked, fault.RunAsks},
	{runbook.ErrAnswer, fault.Usage},
	{runbook.ErrNotSo, fault.RunHalted},
	{evidence.ErrTampered, fault.EvidenceTampered},
	{evidence.ErrShortened, fault.EvidenceShortened},
	{evidence.ErrUnanchored, fault.EvidenceUnanchored},
	{evidence.ErrLedger, fault.EvidenceLedger},
	{evidence.ErrSignature, fault.EvidenceLedger},
	{evidence.ErrStranger, fault.EvidenceStranger},
	{evidence.ErrNoReport, fault.ReportUnknown},
	{evidence.ErrBundle, fault.EvidenceLedger},
	{nbd.ErrUnknownExport, fault.ViewUnknown},
	{syscall.EADDRINUSE, fault.ListenTrouble},
	{context.Canceled, fault.Interrupted},
	{fs.ErrExist, fault.FileExists},
}

// explain gives err a code, unless it has one. what says what was attempted.
func explain(what string, err error) error {
	if err == nil {
		return nil
	}
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	var damage *journal.DamageError
	var pin *replicator.PinError
	var conflict *replicator.Conflict
	var nowhere *journal.NoPointError
	var thinned *journal.ReclaimedError
	var path *fs.PathError
	switch {
	case errors.Is(err, journal.ErrRunLost): // it wraps the damage
		return fault.Wrap(fault.RunLost, what, err)
	case errors.As(err, &damage):
		return fault.Wrap(fault.JournalDamage, what, err).With(damage)
	case errors.As(err, &pin):
		return fault.Wrap(fault.PeerPin, what, err)
	case errors.As(err, &conflict):
		if conflict.Cause == nil {
			return fault.Wrap(fault.PeerDiverged, what, err)
		}
	case errors.As(err, &nowhere):
		e := fault.Wrap(fault.PointUnknown, what, err)
		if b := nowhere.Before; b != nil {
			e = e.Advise("The nearest point before it is #%d.%d, %s; point list shows all.", b.Number, b.Seq, b.Time.Format(timeLayout))
		}
		return e
	case errors.As(err, &thinned):
		return fault.Wrap(fault.HistoryThinned, what, err).With(thinned)
	}
	for _, row := range codes {
		if errors.Is(err, row.err) {
			return fault.Wrap(row.code, what, err)
		}
	}
	if errors.As(err, &path) {
		return fault.Wrap(fault.FileTrouble, what, err)
	}
	return fault.Wrap(fault.Unexpected, what, err)
}

const timeLayout = "2006-01-02T15:04:05.000Z07:00"

// CheckAt judges the form of an --at.
func CheckAt(at string) error {
	_, err := parseAt(at)
	return err
}

// isStarting reports that a journal takes no records because its loop has not
// begun: it neither failed nor is it being closed by us.
func isStarting(err error) bool {
	return errors.Is(err, journal.ErrClosed) && !errors.Is(err, journal.ErrFailed)
}
