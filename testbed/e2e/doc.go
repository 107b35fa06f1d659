// Package e2e tests the product as its users have it: the afterimage program,
// built once a run, as processes with a configuration, that are asked over their
// control socket and by the command line, written to over NBD, and killed.
//
// What a test knows to be true it knows from its own side: a recorder notes each
// write before it is sent and after it is answered (recorder_test.go), and an
// image is a replay of those notes. None of that is shared with the product,
// whose NBD client is used to send and to read.
//
//	daemon_test.go    one site: directory, process, control, logs on failure
//	world_test.go     two sites, the link between them, configurations
//	recorder_test.go  the oracle: what was written, and in which order
//	oracle_test.go    promise 4: points restore to what was written
//	fsck_test.go      promise 4: a guest's file system at any point
//	kill_test.go      promises 2 and 3: kill -9 of a source, embedded
//	tapped_test.go    promises 2, 3 and 8: kill -9 and SIGSTOP of a source, tapped
//	outage_test.go    promises 9 and 10: kill -9 of a receiver, a link that is cut
//	apart_test.go     sites in network namespaces, and what lies between them
//	slowdisk_test.go  a file system of its own, which fills up and stands still
//	storm_test.go     promises 9, 10 and 16: faults of path, processes and disk
//	three_test.go     promises 9 and 16: a source with a slow peer and another
//	cascade_test.go   promises 9 and 10: three sites in a row
//	badinput_test.go  wrong keys, a stranger, a second daemon, a flipped byte
//	full_test.go      a data directory without room
//
// Sweeps are whole under AFTERIMAGE_SWEEPS=1, a twentieth otherwise.
package e2e
