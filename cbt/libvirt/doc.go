// Package libvirt reaches the disks of a domain through libvirtd.
//
// It finds a domain's disks with the QEMU nodes that they are, tells the
// domain's state and definition, and lends package qemu a monitor, so that the
// tap of a QMP socket runs through libvirtd as well. Everything is asked of the
// daemon each time; nothing about a domain is kept.
//
//  1. Connect dials the unix socket that a URI names and opens the driver;
//  2. Conn.Domain finds a domain by name or UUID;
//  3. Domain.Disks joins the live definition with QEMU's own list of drives: the
//     definition has names and sources, QEMU the node that the guest's device uses;
//  4. DialMonitor opens a connection of its own for Tracker options of package
//     qemu: commands travel as libvirt's monitor passthrough, events come back by
//     its monitor events;
//  5. DialCopies is the other way: libvirt's own block copies with synchronous
//     writes. Nothing is passed through; every attachment reads the disks whole,
//     for without passthrough nothing can be attached by a bitmap's delta: a delta
//     is read by a backup job, which libvirt refuses beside a copy, as it does a copy
//     beside it, and each copy begins with everything (kept as a test);
//  6. DialWatch hears what others do to a domain, by libvirt's own events: started,
//     stopped and in which way, defined anew, renamed, a device plugged or pulled.
//
// Beside a copy libvirt refuses snapshots, backups, resizing, saving and pulling the
// disk, and migration. Beside a mirror through passthrough QEMU refuses the first three;
// libvirtd 9.0 was seen to crash when it undid a backup that had begun by then. A domain
// with such a mirror is migrated and saved by those who ask for it, and the tap ends. All
// of it is for a pause of the group.
//
// Passthrough taints the domain ("custom-monitor"): libvirtd notes it in its log.
// It has no out-of-band commands, so a QEMU whose main loop hangs cannot be
// reached this way: ExecuteOOB returns qmp.ErrNoOOB.
//
// The RPC client beneath cannot give up a call: when a context ends, Conn.Call
// returns at once and the call goes on until libvirtd answers or the Conn closes.
// What it did then is unknown. Methods are safe for concurrent use; libvirtd
// serves a few calls of a connection at a time.
package libvirt
