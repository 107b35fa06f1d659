// Package nbdtest holds devices for tests of nbd and of what is built on it: a
// disk in memory, and a device that delays, fails or hangs on purpose.
//
// Everything here may be used from many goroutines at once.
package nbdtest
