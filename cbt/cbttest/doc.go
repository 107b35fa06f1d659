// Package cbttest is the world in which drivers of package cbt are tested.
//
// A Recorder is an in-memory Sink that keeps every event in order, builds the
// images they amount to, and can be told to be slow, full or broken. Memory is
// an in-memory cbt.Memory. StartStorageDaemon and StartQEMU run QEMU's real
// block layer with disks, writable exports for a "guest", and monitors.
// TestTracker is the conformance suite that every driver passes.
//
// Everything is safe for concurrent use unless it says otherwise.
package cbttest
