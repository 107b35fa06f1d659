// Package embedded serves disks that are ours: a volume in an image file, and the
// disk of a promoted machine, which lives in the journal alone.
//
// The journal is the volume's write-ahead log: a write is recorded, then reaches
// the image, then is answered. It promises that a kill -9 costs no gap, for Run
// brings the image to the journal's head before anything is served; that
// overlapping writes reach journal and image in one order; and that FLUSH and FUA
// mean power, since the disk has no other copy.
//
// The way of a write:
//
//  1. the extent, rounded to sectors, is locked against others that touch it;
//  2. a request that is not sector-aligned is completed from the image;
//  3. Sink.Record and Pending.Wait: the record is safe;
//  4. the image is written, the extent unlocked, the request answered.
//
// Where the journal has no room the guest is not stopped: the volume goes on
// unprotected, durably marked so, with a gap. When there is room again the image is
// compared with the journal's head, what differs is recorded, and the interval
// opens anew. The same comparison adopts an image that existed before the journal.
//
// A checkpoint, every few seconds, makes the image durable and remembers the place
// in the history up to which it holds every write; opening replays from there.
//
// An image whose journal has gone on from before it (a rewind, a failover elsewhere) is
// brought to the head where the two histories differ (level.go); one whose host went
// down while it was in use is compared as a whole. What is written then is read back.
//
// A disk that lives in the journal alone is moved into an image, or onto a block device
// (blockdevice.go), while it is served (move.go): each write goes to both from the first one on, the rest is copied under the
// locks of its extents, and the image is the disk's once it is durable and known.
//
// A Device is an nbd.Device, safe for concurrent use. Run owns the checkpoint and
// resync loop.
package embedded
