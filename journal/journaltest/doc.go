// Package journaltest is an independent model of what a journal must give back,
// and a source of operations to try one with. It shares no code with the journal:
// it imports the standard library alone, and knows a group as a few images that
// change one operation after the other.
//
//	Author ──Next──▶ Op ──▶ the journal under test   (any number of configurations)
//	                  └──▶ Op.After: the State that a read of that point must show
//
// A State is one link of a chain back to the empty group; a fork is a second State
// on the same link. States are immutable, so that any number of goroutines may hold
// a journal to them. An Author is for one goroutine.
package journaltest
