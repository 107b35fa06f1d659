// Afterimage is the command line: afterimage NOUN VERB NAME [flags].
//
// The way of a command:
//
//  1. arrange (arrange.go) puts the arguments in order, since the flag library
//     silently drops flags that follow an argument: the command tree knows every
//     flag, so they work anywhere, and what is unknown is refused with exit 2;
//  2. the command's action (one file per noun) loads the configuration, asks the
//     site (site.Reach: the daemon, or the journals where it does not run) and
//     prints what it got;
//  3. run prints an error, if there is one, and gives the exit code.
//
// Data goes to stdout; everything else, errors included, to stderr. With
// "-o json" both are JSON: one object, or lines for what takes long. Every moment
// given with --at is echoed as the point that it resolved to.
//
// Exit codes are the Exit constants of package site/fault.
package main
