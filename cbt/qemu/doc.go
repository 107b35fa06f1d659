// Package qemu taps the disks of a QEMU, or of a qemu-storage-daemon, through
// its QMP socket.
//
// It promises what package cbt asks of a Tracker, and that a guest's write never
// waits for us longer than the stall budget: then the tap lets go, the guest goes
// on, a gap is recorded, and the next attachment costs a delta. It does not see
// that a disk was changed behind QEMU's back, and it cannot order a gap of one
// disk before another disk's writes in the microseconds between a connection
// that somebody else cut (yank, QEMU's own error) and our noticing it.
//
// One attachment of one disk (attach.go), after what an earlier one left was swept;
// the rules of package mode agree to each step, or the attachment ends:
//
//  1. judge (trust.go) decides which bitmaps may be believed; none: a new one
//     begins and the disk is read whole;
//  2. blockdev-add of our capture export under a name that no earlier life or
//     attachment had; blockdev-mirror sync=none copy-mode=write-blocking. From
//     the job's start every guest write arrives, unaligned ones too (measured,
//     and kept as a test): QEMU's own bitmap is never dirty, as it is with
//     sync=full, where unaligned writes into dirty areas are not sent;
//  3. the bitmaps' union is merged after that, so it holds every write that did
//     not arrive; resync.go reads it through a read-only export of the node;
//  4. fill.go compares each piece with the sink's head and records what differs,
//     masked by the writes that arrived since the piece's read was issued;
//  5. all fills are safe, the job is ready, nothing failed: EventSynced;
//  6. hold (rotate.go) keeps two bitmaps, and drops the older when the newer has
//     lived, synced, for twice the stall budget and all is durable.
//
// A write (tap.go): sequencer, gate, mask and Sink.Record, Pending.Wait, reply; of a
// cbt.Prompt all of it in the goroutine that reads the socket (begun.go).
// A write that ends inside a sector is completed from the head; before the head
// knows the whole disk its edge sectors are read from the live disk once more.
// letGo is one-way: it shuts the gate, answers what waits, and gaps.go records
// the gap and opens the gate (Gate says why). The tap then drains: it answers
// without recording until a soft cancel has ended the job. An error or a forced
// cancel is for dead processes only: QEMU 7.2 uses freed memory then, when guest
// writes are under way (tap says more). A yank, or our death, cannot avoid it.
//
// That is the way through the monitor (mirror.go). With Options.Copies there is
// none (copy.go): a manager's copy sends the disk whole and every write with it;
// until it is ready compare.go drops what the head has already.
//
// Bitmap cycles (Options.Every) put nothing in the guest's way (collect.go). One
// bitmap a disk collects. A round (round.go) holds one instant of all disks: in one
// transaction it names what is dirty and begins a backup job for each, which copies
// aside, into a scratch file of its own, what the guest is about to overwrite. Once
// all lies there it is compared with the head and recorded; when that is durable
// EventSynced and at once the gap behind it are, and only then are the jobs finalized
// and the bits given up. A backup into our own export would need no scratch, but a
// guest's write fails when the target of a backup does (on-cbw-error, which a backup
// job of QEMU 7.2 cannot be told), and we may die; so it is a local file, for which
// there has to be twice the room that is needed, and behind a quorum that hides its
// errors from the guest (scratch.go). Trackers that share a Cut
// (cut.go) stop their machines for the transactions, up to 50 ms or there is no point.
// A point's records come after its instant, by what copying and reading took, and carry
// its time.
//
// Pivot (pivot.go) is for a guest whose disks were served over NBD and are to be files
// that QEMU has open itself: the two nodes are exchanged while it stands still, and a
// bitmap begins with which the tap that follows has nothing to read.
//
// Goroutines of Run: the capture server's, watch (stall budget, heartbeat), one
// recorder of gaps per disk, and per session one for events and one per disk.
// Tracker's methods, Gate and Heartbeat are safe for concurrent use.
//
// RunWatchdog is the work of another process: it yanks the capture nodes out of
// band, or kills this process, when heartbeats stop.
package qemu
