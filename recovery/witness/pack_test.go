package witness_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
)

// A pack is every process of a machine's program that bears a mark, whenever it started:
// it stands still from the time that was armed, and what starts after that too; what has
// another name, or no mark, is left alone.
func TestPackStandsStill(t *testing.T) {
	mark := "guest=" + cbt.NewID().String()
	start := func(name, arg string) int {
		t.Helper()
		cmd := self("machine", arg)
		cmd.Args[0] = name
		in, err := cmd.StdinPipe() // it waits for a word
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			in.Close()
			_ = cmd.Wait()
		})
		return cmd.Process.Pid
	}
	ours, other, unnamed := start("qemu-system-x86_64", "x,"+mark+",y"), start("qemu-system-x86_64", mark+"-else,y"), start("editor", mark)
	k, err := witness.StartKennel(self("packdog", mark))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := k.Arm(ctx, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if still(ours) {
		t.Error("it stands still before its time")
	}
	if err := k.Arm(ctx, time.Now()); err != nil {
		t.Logf("armed in the past: %v", err) // it may have paused by then
	}
	until(t, "the machine stands still", func() bool { return still(ours) })
	late := start("qemu-kvm", mark)
	until(t, "one that started later stands still", func() bool { return still(late) })
	if still(other) || still(unnamed) {
		t.Errorf("another machine stands still: %v, another program: %v", still(other), still(unnamed))
	}
	for k.Disarm(ctx) != nil && ctx.Err() == nil { // that it has paused is said first
	}
	if n, err := witness.Signal([]witness.Mark{witness.Mark(mark)}, unix.SIGCONT); n != 2 || err != nil {
		t.Errorf("%d machines go on, %v", n, err)
	}
	until(t, "both go on", func() bool { return !still(ours) && !still(late) })
}

func still(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, ok := bytes.Cut(stat, []byte(") "))
	return err == nil && ok && after[0] == 'T'
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("after a minute not yet: %s", what)
		}
	}
}

// A mark is a whole value: what only contains it is another machine's.
func TestBears(t *testing.T) {
	const id = "11111111-2222-4333-8444-555555555555"
	for _, c := range []struct {
		mark witness.Mark
		args []string
		want bool
	}{
		{"guest=web", []string{"/usr/bin/qemu-system-x86_64", "-name", "guest=web,debug-threads=on"}, true},
		{"guest=web", []string{"/usr/bin/kvm", "-name", "guest=web"}, true},
		{"guest=web", []string{"qemu", "-name", "guest=web-2,debug-threads=on"}, false},
		{"guest=web", []string{"qemu", "-name", "guest=web,,2,debug-threads=on"}, false},
		{"guest=web", []string{"qemu", "-name", "guest=x,,guest=web,debug-threads=on"}, false},
		{"guest=web", []string{"qemu", "-name", "otherguest=web"}, false},
		{"guest=web", []string{"editor", "guest=web"}, false},
		{"/run/q.sock", []string{"qemu", "-qmp", "unix:/run/q.sock,server=on"}, true},
		{"/run/q.sock", []string{"qemu", "-chardev", "socket,id=m,path=/run/q.sock"}, true},
		{"/run/q.sock", []string{"qemu", "-chardev", `{"path":"/run/q.sock"}`}, true},
		{"/run/q.sock", []string{"qemu", "-qmp", "unix:/run/q.sock2,server=on"}, false},
		{"/run/q.sock", []string{"qemu", "-qmp", "unix:/var/run/q.sock,server=on"}, false},
		{witness.UUID(id), []string{"qemu", "-uuid", id}, true},
		{witness.UUID(id), []string{"qemu", "-drive", "file=/images/" + id}, false},
		{witness.UUID(id), []string{"qemu", "-smbios", id}, false},
	} {
		if got := witness.Bears(c.args, []witness.Mark{c.mark}); got != c.want {
			t.Errorf("%q in %q: %v", c.mark, c.args, got)
		}
	}
	if !witness.Bears([]string{"/opt/vm", "guest=web"}, []witness.Mark{"guest=web", witness.Program("/opt/vm")}) {
		t.Error("a program that is named is not known")
	}
}
