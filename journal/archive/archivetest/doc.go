// Package archivetest is the world in which package archive is tested: a Store
// in memory, which can be told to fail, and the suite that every Store passes.
package archivetest
