// Package replicator moves the records of groups to peers, in order. What carries them
// lies behind a seam: package transport, with QUIC as the one that is used.
//
// It promises (numbers as in the design): an acknowledgement means durable at the
// peer, only durable records are sent, and the lag shown is never less than the
// true one (9); delivery is exactly once in effect, since both ends name records by
// lineage and the receiver's durable cursor says where to go on (10); histories are
// compared before the first frame, and a divergence halts the group both ways (11);
// nothing is read from a caller whose key is not pinned (14); memory per group
// is bounded by Options.WindowBytes a few fixed buffers and two tables of 2 MiB (16). It does not
// decide who is primary, and does not open or create journals.
//
// The way of a frame:
//
//		primary                                  replica
//		Source.Stream → Frames.Next
//		  sender.admissible (durable? dense?)
//		  frameHeader.encode
//		  throttle.copyN → flow.Write
//		  lanes: pieces ──── lane, lane … ────→  receiver.drain → assembly
//		                                         readFrameHeader
//		                                         Replica.AppendFrame (verifies)
//		  progress.acked ←─── control: Ack ────  Replica.WaitDurable, inbound.ackLoop
//		  progress.heartbeat ─ Heartbeat ──────→ progress.heard
//
//	 1. The site that is a group's primary dials (dialLoop); TLS 1.3 proves both
//	    keys, and each end holds the other's against its pins.
//	 2. Hello, from both ends: versions and features.
//	 3. Open carries the group and the source's history. The replica judges it
//	    (replicaVerdict) and answers Accept, with its own history and its durable
//	    cursor, or Refuse, with a code and the same evidence. The source judges too.
//	 4. Frames flow, from the durable cursor on: as one run of bytes, in pieces over the
//	    lanes of the session, each with a connection of its own (lanes.go), as many as
//	    help (laneplan.go), shared by weight, and put in order again (assembly.go). What
//	    is under way is bounded by what the path holds (pipe.go). What a lane loses, or is
//	    late with, goes over another (late.go).
//	    A cut at any point costs what was under way; the next Open finds the cursor.
//	    Where frames do not reach back to it, or the replica is further behind than
//	    Group.Coalesce allows, or ends within a frame, the opening carries a delta, and the
//	    next one frames (delta.go).
//	    On the way a frame is packed where that pays (pays.go): LZ4, and a hash for each
//	    block that went over the stream before (pack.go, packed.go, blocks.go); small ones
//	    that follow each other at once go together (bundle.go).
//	 5. Heartbeats carry the source's clock and head. A moment counts as safe once all
//	    that was captured until then is durable at the replica and the replica has
//	    heard of it; RPO is the age of the newest such moment. The replica places it
//	    on its own clock by the measured offset, error added (clock.go, lag.go).
//	    Who receives a group may send it on; what a relay says of the lag counts from the
//	    primary (relay.go).
//	 6. Either end may ask the other for the frame of a record that it found damaged,
//	    on a stream of its own (fetch.go).
//
// Keys come to be pinned by configuration, or by a token that one site makes and the
// other presents (invite.go). SetPeers changes them while it runs: a peer that is
// removed loses its sessions at once. A site changes its own key while its sessions go on
// (rotate.go). Sessions go over QUIC, or TLS over TCP (carriers.go). What is sent is limited per peer and per group, by
// a timetable or a person (timetable.go, allowance.go).
//
// Goroutines, all under Run: one that samples heads, one that follows the timetables,
// one that accepts, one that follows the peers and runs a dial loop for each; one for
// each caller with a token; per connection a control reader, writer and pinger, and one that answers questions; at the source a
// heartbeat loop, a manager, a keeper of lanes with one for each, and per group a sender
// and a watcher; at the replica one that takes lanes in with one for each, a refresher and per group a receiver and an acknowledger.
//
// Replicator's methods may be called from anywhere at any time. Options.Receive,
// Options.Groups and Events are called from these goroutines, several at once. A
// group is appended to by one session at a time, the newest.
//
// quic-go uses segmentation offload, which stalls on some kernels; a connection on
// which nothing moves is dropped after Options.StallTimeout, and the environment
// variable QUIC_GO_DISABLE_GSO=1 turns the offload off.
package replicator
