// Package witness lets at most one site at a time run a group unattended.
//
// A Witness grants leases: for a group, to one holder, for a time to live. It
// promises that nobody is granted a lease while another one may still believe in
// his: the holder's belief ends, by his own monotonic clock, a margin before the
// witness can grant it anew. A lease does not stop a machine; a Guard (guard.go) is a
// lease with a Watchdog that does, in a process of its own (Kennel and Dog, dog.go),
// when the holder hangs or dies. Without one there is no right to run unattended.
//
//	renewal sent      believed until         the witness's own end
//	   |---------------------|------ margin ------|  →  another may hold it
//	   0             ttl − ttl/4                 ≥ ttl from its receipt
//	                         | pause ttl/8 | clocks ttl/8 |
//
// The way of a lease:
//
//  1. Acquire notes its clock, then asks; the lease counts from the note;
//  2. Lease.KeepAlive renews until its context ends or the lease is lost; each
//     renewal counts from when it was sent;
//  3. once believed no more, a lease is lost for good, even if the witness would
//     still renew it: what depended on it has been stopped;
//  4. Release ends the belief first and then tells the witness.
//
// A clock may be off by any amount, but must not run slower than the witness's by
// more than an eighth of the ttl in one ttl; the other eighth of the margin is what the
// machine may take to stand still. CLOCK_MONOTONIC stands still while a host is suspended;
// its machines do too, but on waking they run until the timer fires.
//
// Where a machine may start later, or again, a PackDog (pack.go) looks for it when the time
// has come. Who took the newest lease and has not given it back stays written (last.go).
//
// Etcd keeps leases in an etcd cluster; package witnesstest has the twin in memory
// and the suite that both pass. Everything is safe for concurrent use. Acquire
// starts a timer and no goroutine; KeepAlive and Keep block; StartKennel starts one that
// ends with its process, or with Kennel.Leave.
package witness
