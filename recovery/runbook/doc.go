// Package runbook is the operator's file that brings several machines up in order:
// its shape, its judge, its plan, and the engine that carries a plan out.
//
// It promises that a file is refused with code, line, column and hint before anything
// is done; that the same file and mode give the same plan; that a plan is durable
// before its first step; that a step which was interrupted and resumed ends as if it
// had not been, and that a step of which nobody can tell whether it happened is not
// repeated without a person's word. It does not know what a machine, a network or a
// site is: a Driver does each step and says whether it happened.
//
// The way of a file:
//
//  1. Parse (syntax.go, decode.go): text to Runbook, every fault with its place;
//  2. Runbook.Check (check.go), pure: against what the site has (Facts);
//  3. NewPlan (plan.go, estimate.go), pure: for a mode, to actions and what each
//     comes after; the same file serves drill, move, failover and failback;
//  4. Begin (run.go, log.go): the plan with its hash, then a log of what began and
//     ended, both fsynced before what they say is relied upon;
//  5. Engine.Run (engine.go): each action is looked at, done, looked at again. After
//     any interruption Open and Engine.Run go on where the log ends.
//
// In a boot group the steps of one machine follow each other and those of different
// machines run beside each other; a step without a machine waits for all before it,
// and all behind it wait for it.
package runbook
