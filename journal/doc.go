// Package journal keeps every write of a group's past, and gives back any moment.
//
// It promises that a write is answered only when its record survives the death of
// the process (SyncProcess) or of the machine (SyncPower); that what survives a
// crash is a prefix of the recorded order; that every point it lists restores to
// what was written; that a damaged byte is found before use and named; that
// records leave for a peer only once they survive the loss of power; and that thinning
// never takes a point that is kept or in use. It does not order what its callers
// issue at the same time.
//
// Two logs and the runs hold the truth, Pebble an index that can be rebuilt from them:
//
//	segments/ frames of the stream, the same bytes at every site   format.go, segment.go
//	runs/     folded history: what its kept points see             run.go, fold.go
//	site.log  what this site alone knows                           sitelog.go, sitecopy.go
//	index/    where blocks lie; epochs, marks, gaps, samples       index.go, catalog.go
//	pool/     segment files written ahead or to be used again      pool.go
//
// The way of a write:
//
//  1. Writer.Record gives it a seq and a place in the open commit (commit.go), and
//     copies, or seals, its payload there, beside other writers (layout.go);
//  2. commitLoop takes the commit once nobody else adds to it, puts header and records
//     before the payloads and writes the frame into the segment (output.go), past the
//     page cache in SyncPower (direct.go); in SyncProcess the writers are answered
//     here: the page cache of the segment file is the log that outlives the process.
//     Whoever recorded with RecordNow does this himself then (commitHere);
//  3. in SyncProcess syncLoop makes it durable while the next ones are written
//     (durable.go), after a rest unless somebody waits for it (rest.go). In SyncPower the frame flies: the kernel writes and syncs it while
//     the next are formed, and landLoop answers the writers, in order (flight.go); a
//     lone one is synced and answered by commitLoop itself;
//  4. finishLoop computes the chain and indexes the frame, behind the replies.
//
// The way of a read: Resolve finds a point (points.go, at.go), View follows its
// lineage (lineage.go); then, chunk by chunk (asof.go),
//
//  1. resolve.go asks the index what the sectors are made of, once a chunk where reads
//     come back to it (cache.go): levels and forks bound the cost, never versions;
//  2. fetch.go joins what lies together, fileread.go and aio.go read it past the page
//     cache, all at once;
//  3. every cell is verified, opened and unpacked (payload.go) before a byte is handed
//     on.
//
// Materialize does the same for a whole image in the order of the files. Stream
// and AppendFrame carry frames between sites (stream.go, receive.go). Scrub reads
// everything and names what is damaged (verify.go); the points that it spoils say so
// (invalid.go), until Repair brings the bytes back from a peer (repair.go, runrepair.go).
//
// How a payload is stored is decided once, at the primary, and the bytes are the same
// at every site: none where it is zeros or repeats what is there (rewrite.go), packed
// where that holds up nobody (compress.go), sealed where the group has a key (seal.go).
// Data keys live in one process; the stream carries them wrapped by a key of the
// tenant (datakeys.go), which a KeyRing keeps (keyring.go). A site without it stores,
// verifies, folds and relays all the same; a missing or wrong key is a *KeyError, never
// damage. Rotation wraps the data keys anew (rewrap.go). A tenant is forgotten by
// destroying its key: what every site and copy still holds is noise then (shred.go).
// Sealed are the guests' bytes; extents, times, lengths, which blocks are zeros, names,
// marks and machines' definitions are not.
//
// The way of what is old: Maintain (maintain.go) lets Choose (retention.go) say which
// points stay, folds whole segments into a run with what those see (fold.go, run.go),
// makes it durable and lists it in the site log (manifest.go), swaps the index over
// (swap.go), and gives the segments back. What was begun is finished or taken back.
//
// The way of a delta, where a follower lacks frames that are folded here: OpenDelta
// finds a record from which on all frames are left, Write makes a run of the newest
// version of every sector that changed up to it (delta.go); at the follower OpenLanding
// folds what is held, Take verifies the whole and makes it the newest run (landing.go).
// Frames follow from there on.
//
// Opening (recover.go) loads how far the index has come and replays the segments
// from the last place known durable: it costs what was written in the last few
// segments, not the history. The newest segment is synced first: what a dead process
// left in the page cache counts as durable only then. An invalid frame ends the log
// unless a later segment, or a later frame of a reign of this site, proves that more
// had been durable, or whole received frames stand further behind than such are ever
// unsynced. That is a torn tail: cut off, and logged. What is a loss does not open: the
// end lost (ErrTailLost), a file or the site log older than what the index or the clean
// close remembers (ErrRolledBack), a segment missing before others (ErrMissingSegment).
// Options.AcceptLoss opens those on a person's word (salvage.go). Files of another
// group never open (ErrWrongJournal). Capture then goes on in a new epoch. A run that is
// damaged or missing keeps nothing else from being used (runtail.go), unless the index
// would have to be built anew from it (ErrRunLost). A damaged site log is mended from
// the copy in the index; what that lacks is a loss as well (ErrSiteLogLost), after which
// nothing is thinned until a person has looked at pins and peers (sitecopy.go).
//
// Memory: records and frames under way (64 MiB), Pebble's memtable (16 MiB) and cache
// (32 MiB), resolved chunks of all views (32 MiB), 8 KiB a view, 1 MiB a read under
// way and at most 24 MiB to gather it from, 192 MiB at most an image that is
// materialised, a frame's header and records. An open journal of 64 volumes holds 0.3 MiB
// beside; per TiB of volume that grows by nothing, per million records by less than
// 10 KiB (Pebble's list of files), per epoch by 250 bytes, where it is sealed by 1 KiB for its key; what is
// written takes a MiB for the newest records of its cells. The index on disk takes 17 to
// 30 bytes a record. What an opening after a kill reads again is what was
// written in the last few segments (flushSegments), whatever the history (slopes_test.go).
// Folded history takes 64 bytes a kept point. A fold or merge holds one MiB of a volume
// with its versions, 32 bytes a separate stretch of volume that changed, and 32 bytes a
// MiB of the run; its input stays on disk until the run has replaced it.
//
// Run owns five goroutines: one for step 2, two for step 3, one for step 4, one that
// fills the pool. Lock order: committing
// before fileMu before mu. A failed write or fsync is terminal for the Journal, except for a lack
// of space: that refuses what is under way, takes back what it would have changed,
// records a gap as soon as there is room, and is over when there is space again.
package journal
