// Package testbed is the world for tests. The package itself holds only the test
// of the import graph (DESIGN.md, "The house"); the world lies below it:
//
//	check    the script that installs what tests need and runs them all
//	tally    what check counts tests with
//	scale    how large a test is, what it may expect of the machine, how it counts
//	port     ports that nobody else binds between the test's choice and their use
//	stamp    numbered, checksummed blocks: what a load writes and a check reads
//	guest    a Linux guest that boots in seconds, and QEMU around it
//	link     a network path between two loopback addresses, with its vices
//	tunnel   a path of IP packets between two network namespaces, with the same vices
//	libvirtd a libvirtd that belongs to one test
//	loop     block devices
//
// scale, port, loop, stamp, guest, link, tunnel and libvirtd are leaves: they import nothing of the
// product, so the tests of every package may import them, and what they find shares no code
// with what they check. The demo and the benches of cli use stamp, guest and
// link too; scale and port are for tests alone.
//
// The way of a run of check:
//
//  1. Debian packages that are missing are installed (root), or named;
//  2. gofmt, go vet, staticcheck, go mod tidy -diff;
//  3. race: all tests under the race detector; scale.Scale makes sweeps a
//     fiftieth of their size, scale.Guest skips guests;
//  4. full: the packages whose tests import a package of testbed run once more
//     without the detector, with AFTERIMAGE_SWEEPS=1 (not with -short);
//  5. the counts of scale.Counted are held against counted.txt.
package testbed
