// Package cbt captures what guests write.
//
// A Tracker follows the disks of one machine and hands every write to a Sink,
// which answers once the record is as safe as its policy asks. The package
// promises that a Sink hears of writes in an order any prefix of which is a
// crash-consistent image of all disks together, that nothing is called synced
// before every block of a volume is known, and that a break of any kind is
// told as a Gap. It promises nothing about durability: that is the Sink's.
//
// The way of a write, per-write capture:
//
//  1. the guest writes; QEMU's mirror (write-blocking) sends the same bytes to
//     a capture export of package nbd, whose name carries an Incarnation;
//  2. the tracker rounds the request to sectors (Sink.ReadHead completes them)
//     and calls Sink.Record;
//  3. the Sink gives the event its seq; Pending.Wait returns once it is safe;
//  4. the export answers, QEMU completes the guest's write.
//
// A fill, a block read from the live disk during resync, takes its seq at its
// reply and is masked by every tap write that arrived since its read was issued
// (Mask). The drivers are cbt/qemu (a QMP socket) and cbt/libvirt; a disk
// that we serve ourselves is cbt/embedded.
//
// Values may be shared freely; a Sink is called from many goroutines at once.
package cbt
