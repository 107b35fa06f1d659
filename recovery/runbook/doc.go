// Package runbook is the operator's file that brings several machines up in order:
// its shape, its judge and its plan.
//
// It promises that a file is refused with code, line, column and hint before anything
// is done, and that the same file and mode give the same plan. It does not know what
// a machine, a network or a site is.
//
// The way of a file:
//
//  1. Parse (syntax.go, decode.go): text to Runbook, every fault with its place;
//  2. Runbook.Check (check.go), pure: against what the site has (Facts);
//  3. NewPlan (plan.go, estimate.go), pure: for a mode, to actions and what each
//     comes after; the same file serves drill, move, failover and failback.
//
// In a boot group the steps of one machine follow each other and those of different
// machines run beside each other; a step without a machine waits for all before it,
// and all behind it wait for it.
package runbook
