// Package guest is a Linux guest that boots in seconds under QEMU, writes stamps
// and reports what it finds: real input for tests, and for the demo.
//
// Nothing is downloaded but Debian's packages of the kernel and, for WithAgent, of the
// guest agent, by apt-get, and nothing is installed. The way of a guest:
//
//  1. Build unpacks the kernel into a cache outside the tree (CacheDir), builds the
//     program in guest/init as process 1, and packs it with the virtio modules into
//     an initramfs;
//  2. Accelerator boots that guest once under KVM, with a deadline, and remembers
//     whether it came up: /dev/kvm that opens proves nothing;
//  3. Argv is the command line of a QEMU with given disks, two QMP sockets and a
//     console socket that QEMU connects to;
//  4. Start listens on the console, runs QEMU, and hands back a Guest; a QEMU that
//     somebody else starts from Argv talks to a Console of ListenConsole;
//  5. Send gives it orders (guest/init lists them), Wait takes its answers.
//
// Builders in several processes exclude each other by a lock in the cache. A Console
// and a Guest are safe for concurrent use. The package imports nothing of the
// product.
package guest
