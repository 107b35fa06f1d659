package qmp

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestStorageDaemon holds the client against QEMU's own server.
func TestStorageDaemon(t *testing.T) {
	bin, err := exec.LookPath("qemu-storage-daemon")
	if err != nil {
		if os.Getenv("CI") != "" || os.Getenv("AFTERIMAGE_TESTBED") == "1" {
			t.Fatal(err)
		}
		t.Skip("qemu-storage-daemon is not installed")
	}
	dir, err := os.MkdirTemp("", "ai")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "q")
	cmd := exec.Command(bin, "--chardev", "socket,id=c,server=on,wait=off,path="+socket, "--monitor", "chardev=c",
		"--blockdev", "null-co,node-name=disk,size=1048576")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()

	ctx := testContext(t)
	var c *Client
	for tick := time.NewTicker(5 * time.Millisecond); ; <-tick.C {
		if c, err = Dial(ctx, socket, Options{}); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	if !c.OOB() || c.Version().Major < 5 {
		t.Fatalf("oob %v, version %v", c.OOB(), c.Version())
	}
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := c.Execute(ctx, "query-named-block-nodes", nil, &nodes); err != nil || len(nodes) != 1 || nodes[0].Name != "disk" {
		t.Fatalf("nodes %v, %v", nodes, err)
	}
	err = c.ExecuteOOB(ctx, "yank", map[string]any{"instances": []any{map[string]any{"type": "block-node", "node-name": "disk"}}}, nil)
	if !IsRefused(err) {
		t.Fatalf("yank of a node without a connection: %v", err)
	}
	sub := c.Subscribe(64)
	if err := c.Execute(ctx, "block-stream", map[string]any{"device": "disk", "job-id": "j"}, nil); err != nil && !IsRefused(err) {
		t.Fatal(err)
	}
	args := map[string]any{"job-id": "b", "device": "disk", "target": "disk2", "sync": "full"}
	if err := c.Execute(ctx, "blockdev-add", map[string]any{"driver": "null-co", "node-name": "disk2", "size": 1 << 20}, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Execute(ctx, "blockdev-backup", args, nil); err != nil {
		t.Fatal(err)
	}
	for {
		e, err := sub.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var data struct{ Device string }
		if json.Unmarshal(e.Data, &data); e.Name == "BLOCK_JOB_COMPLETED" && data.Device == "b" {
			break
		}
	}
	cmd.Process.Kill()
	<-c.Done()
	var pe *ProtocolError
	if err := c.Err(); err == nil || errors.As(err, &pe) {
		t.Fatalf("the peer's death reads %v", err)
	}
}
