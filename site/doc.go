// Package site is one end of the product: it composes journals, capture,
// replication and exports into a daemon, and gives it a face (control API,
// metrics, NBD socket). Child packages: config (the file), control (the API, its
// client and server), detect (of encryption from within), fault (codes of errors).
//
// It promises: one process per data directory; a group that fails is tried again
// while the others go on; the role of a site is durable and the configuration
// names it for the first start only; what was asked of a disk is answered before
// its journal closes. It does not promise that an old primary is off unless its group
// has a fence: (fence.go) that proved it.
//
// The main path:
//
//  1. Open locks the data directory and reads the site's key; Run listens;
//  2. group.live reads the keys of a sealed group (keys.go), opens a journal and
//     plays the role: a replica waits for frames (Site.inbound), a primary reigns;
//  3. enthrone begins an epoch, crown opens the disks (openCaptured: images and a
//     tracker; openJournaled: after a failover), rule blocks;
//  4. a client's write reaches exported, the disk, journal.Writer; the replicator
//     reads it again through Site.outbound;
//  5. Serve and Restore read journal.View; Failover makes a plan (plan.go), carries
//     it out through package recovery, and hands the reign to the waiting life;
//     before its epoch begins, dirty bitmaps are forgotten (promoting). Repeated on
//     a group that it promoted, it only starts the machine that is missing (resume);
//     A drill (drill.go) starts the same machine isolated over a scratch view and takes
//     it away; what an earlier life left of one goes before anything else (sweepDrills).
//     A group of several machines tells them in its history (severalmachines.go), and its fence leaves none out;
//     A runbook's run (runs.go) is package runbook's engine over these (steps.go);
//     Their reports are entered into a signed ledger (evidence.go);
//     A rewind (rewind.go, rewinding.go) is planned and promoted alike, by who reigns,
//     between two reigns of one life; a tapped machine is turned off and its own disks
//     are written to (tappedmachine.go, drives.go); Changes lists what differs between points;
//     Disks that a machine was started from move into images (move.go) or onto block devices (movedevice.go), and from there to its own QEMU, which is tapped then (pivot.go, pivoting.go), and seen off like a tapped machine (pivotoff.go);
//     Beside the writes of a reign a detector looks at samples (suspect.go, package detect);
//     A handover (handover.go) is asked for at the giver (plead.go) and drained and ceded by its
//     next life (drain.go), once the machine is known to be off (tapsoff.go, endedwhole.go,
//     ranon.go) and, of one in bitmap cycles, its disks were read (cyclesend.go); it is taken once
//     by the taker (takeover.go), which starts the machine (taken.go), a captured domain from
//     disks of its own that are brought to the head first (home.go) where they are those that
//     it ran with (homedisks.go); what sites ask each other is in consult.go.
//     Before a failover all peers are asked where their histories end (tails.go), and the
//     furthest tail is fetched (tailfetch.go). Unattended, a group runs by right of a witness
//     (guard.go, guardkept.go, guardlease.go, guardmarks.go), and a replica takes it over (standby.go).
//     Roles change by acts that are durable first (acts.go); what a failover came to is
//     decided in decide.go; of two histories one is left (yield.go, reprotect.go), and
//     the trunk is forked anew where a follower needs that (follow.go, renew.go); a
//     replica that can follow from nowhere rejoins (rejoin.go, aside.go);
//  6. keepUp thins the history on its schedule (maintain.go), with what peers, disks,
//     marks and failovers need of the past as references (references.go); a failover
//     ends it, so that its point cannot go between plan and promotion.
//
// Without a daemon, Reach opens journals for reading, one command at a time.
//
// Goroutines of the process. Run: one for each group (group.run), one each for
// the replicator, each guard (guard.run, with one that keeps its lease), the NBD server, the control server, the metrics server, the
// end of runs, drills and views, the watchdog's keeper (watchdog.run). An open group: journal.Run
// (committer, syncer, finisher), play, at a replica one that settles decisions (settle), noteHeads, keepUp, one that ends pivots which were left half-way (finishPivots), and in a reign one that rules (ruleUntil), one per embedded disk
// (checkpoints), one that starts a machine which a rewind left off (startLeft), one that starts a domain with its host (startAsked), one each that starts what a handover has left to be started at its taker (startTaken) and, where it was withdrawn, at its giver (startWithdrawn; owed.go says what they wait for), one that starts the machine of a takeover by the witness (startWitnessed), one that finishes a start of several machines which was cut off (finishStart), one each for scheduled marks, commit policies and peers that are to follow (scheduleMarks, keepPolicy, protect), one for the tracker (its own doc lists its) with one that ends it
// for a pause (tapping.tap), one that resumes during a pause what an earlier life left stopped (tapping.rest), and one that thaws what an earlier life left frozen
// (thawLeft). The replicator:
// sampler, acceptor, one dialler per peer, and per connection those of its link.
// A handover that begins: one that stops the machine first, and looks after it where it does not come about (startMove).
// Servers: one per connection, for NBD one more per request in flight. Views: one
// server each. A restore to qcow2: one server while it lasts. Nothing else.
//
// Locks are taken in the order group, life, Site; none is held across I/O. Whoever
// touches an open journal counts as a user of its life (group.use, guard): it is
// closed after the last one has left.
package site
