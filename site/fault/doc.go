// Package fault is what a user is told when something does not work: a stable
// code, what happened, why, and what to do, with the exit code of the command
// line behind each. The table of codes is one list (Table); explain, the
// control API and the documentation are printed from it.
//
// Packages below site return sentinels; site maps them to codes once (site/codes.go),
// and only the command line prints them. Values are immutable and may be shared.
package fault
