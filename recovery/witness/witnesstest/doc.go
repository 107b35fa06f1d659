// Package witnesstest is the world in which package witness is tested: a Witness
// in memory, which can become unreachable, and the suite that every one passes.
package witnesstest
