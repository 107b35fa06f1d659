// Package recovery turns points into running machines, and into files.
//
// It promises that a plan shows the whole loss, what the point gives up of what is
// here and what never arrived; that no promotion goes on without a proven fence
// unless somebody said so, and then it is recorded as unfenced; that a promotion
// which is interrupted anywhere and repeated ends as if it had not been; that a
// machine is never started twice; that a restored file is what the view shows, read
// back, or is not there. It does not ask peers: what they said is an input. Package
// fence proves that the old machine is off, by channels that the caller names.
//
// The way of a failover:
//
//  1. NewPlan (plan.go, loss.go), pure: from what is known to Plan, shown to a person;
//  2. Failover.fence: where the plan names channels the old machine is switched off and
//     seen off, before anything changes here;
//     Promote (promote.go): the intent is durable, then the epoch forks at the point,
//     then the role (reign.go), then the outcome;
//  3. the caller serves the volumes over NBD from the new epoch's journal.Writer;
//  4. Machine.Ensure (machine.go, process.go): QEMU is started, or found running, by
//     the lock on its pid file (owner.go) and its UUID (identity.go); it outlives us. A
//     Host (host.go), libvirtd, does the same for a machine that is a domain there;
//  5. Running.Healthy (health.go) waits for a line on its serial console.
//
// Failover (failover.go) is these steps in order with the time of each; its Report
// (report.go, plot.go) is the evidence, as JSON and as one HTML file.
//
// A rewind (rewind.go) is the same promotion at the primary's own site: NewRewind plans
// it, Promote forks, and the disks are opened again, which brings them to the fork. Where
// they are a tapped machine's own, it is off by then, and a Drive (drive.go) of each is
// brought to the fork before anything is captured; so it is with those of a machine whose
// group was handed back. One may also be read alone (driveread.go), for what it holds and
// the head does not.
//
// A drill is the same machine, Isolated (isolate.go), over scratch disks; what is done
// inside a guest is in inside.go. Several machines in order are package runbook's.
//
// A group of several machines is one Machine with others besides it (besides.go): all of
// them start or none, and whoever asks for it asks for all.
//
// Beside it: ViewDevice and Scratch (viewdevice.go, scratch.go) are a view as a disk,
// read-only and writable; Restore (restore.go, qcow2.go) writes a view to a file.
//
// All functions may be called concurrently; one Promote or Ensure of a group or a
// machine runs at a time, which the caller sees to. The goroutines are that of Restore's
// export, which ends with it, and one that reaps each QEMU started by this process.
package recovery
