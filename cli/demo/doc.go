// Package demo shows, on one machine and in about a minute, what Afterimage does,
// and proves every claim from the outside.
//
// Two site daemons, each a process of its own, replicate one disk over loopback:
//
//  1. a load writes stamps (testbed/stamp) to the disk at site a; a reader opens the
//     newest point at site b again and again and finds how old its newest stamp is:
//     the RPO, measured, not reported;
//  2. a mark is set, then "ransomware" overwrites the documents on the disk; the view
//     before the attack, served by b, is proven intact, and the newest one ruined;
//  3. a burst leaves b behind, the primary is killed with SIGKILL, and b fails over;
//  4. the stamps on b's disk tell what was lost; it must be what b's plan had said,
//     none torn and none missing below.
//
// With QEMU the disk is a guest's, tapped through QMP; guest and daemon are killed,
// and the guest boots at b from its history.
//
// The demo leaves a directory with the report, the RPO plot and the sites' logs. Run
// is one call; it ends only processes that it started, by their handles.
package demo
