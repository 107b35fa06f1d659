// Package fence proves that a machine, or several, are off, or says why that is not proven.
//
// It promises that "unreachable" is never "off"; that no channel is believed alone:
// what one says it switched off has to be seen off through another one; that a channel
// which answers yes to whatever it is asked is found out before it is believed; that
// one reading of a machine that runs outweighs any number that say it is off. It does
// not promise that a machine stays off: who proves it must act at once.
//
// The channels to a machine:
//
//	Program (program.go)      a fence agent: action and parameters on stdin, exit status
//	Domain (domain.go)        the old host's libvirtd
//	Statement (statement.go)  what the old site signed when it stood down; nothing is asked
//	Quiet (quiet.go)          an address, or a session, that answered before and no more
//
// The way of a proof (Fence.Prove):
//
//  1. every channel is read, so that a silence later is known for a change;
//  2. switches are challenged: one that knows a plug which does not exist, or calls a
//     plug off that is on, lies;
//  3. the first switch is thrown, then all channels are read again; what is not proven
//     by then is tried with the next switch;
//  4. judge (judge.go), pure, makes one Result of all that was seen.
//
// Several machines of one group (several.go) are off when each is; all are read before the
// first switch is thrown, and again after the last.
//
// Nothing here asks the old site, and nothing waits longer than its channel's timeout.
// A Fence may be proven by one caller at a time. No goroutine outlives a call.
package fence
