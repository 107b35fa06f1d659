package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/novacron/afterimage/cbt/qmp"
)

// commandPatience bounds one command. A main loop that is busy for longer is
// treated as a machine that is not there.
const commandPatience = 10 * time.Second

// commands are the QMP commands of the driver, typed.
// Source: qapi/block-core.json, qapi/block-export.json, qapi/yank.json of QEMU.
type commands struct{ Monitor }

type args map[string]any

// do runs a command with our patience. Running out of it ends the connection:
// what the command will still do is unknown. A caller that leaves does not end
// it, for it still has to clean up, and commands keep their order.
func (c commands) do(caller context.Context, name string, a args, result any) error {
	ctx, cancel := context.WithTimeoutCause(caller, commandPatience, fmt.Errorf("no reply within %v", commandPatience))
	defer cancel()
	var in any
	if a != nil {
		in = a
	}
	err := c.Execute(ctx, name, in, result)
	if caller.Err() != nil {
		return errors.Join(context.Cause(caller), err)
	}
	if err != nil && !qmp.IsRefused(err) {
		c.Close()
		return fmt.Errorf("%w: %w", ErrMonitor, err)
	}
	return err
}

// nodeInfo is a block node.
type nodeInfo struct {
	Name     string `json:"node-name"`
	Driver   string `json:"drv"`
	ReadOnly bool   `json:"ro"`
	Image    struct {
		Filename    string `json:"filename"`
		VirtualSize int64  `json:"virtual-size"`
		Snapshots   []struct {
			ID string `json:"id"`
		} `json:"snapshots"`
	} `json:"image"`
	Bitmaps []bitmapInfo `json:"dirty-bitmaps"`
}

// bitmapInfo is a dirty bitmap of a node.
type bitmapInfo struct {
	Name         string `json:"name"`
	Recording    bool   `json:"recording"`
	Busy         bool   `json:"busy"`
	Persistent   bool   `json:"persistent"`
	Inconsistent bool   `json:"inconsistent"`
	Granularity  int64  `json:"granularity"`
	Count        int64  `json:"count"` // bytes; means nothing when inconsistent
}

type jobInfo struct {
	ID       string `json:"device"`
	Type     string `json:"type"`
	Ready    bool   `json:"ready"`
	Status   string `json:"status"`
	IOStatus string `json:"io-status"`
	Error    string `json:"error"`
}

func (c commands) nodes(ctx context.Context) ([]nodeInfo, error) {
	var ns []nodeInfo
	return ns, c.do(ctx, "query-named-block-nodes", nil, &ns)
}

func (c commands) node(ctx context.Context, name string) (nodeInfo, error) {
	ns, err := c.nodes(ctx)
	if err != nil {
		return nodeInfo{}, err
	}
	for _, n := range ns {
		if n.Name == name {
			return n, nil
		}
	}
	return nodeInfo{}, fmt.Errorf("%w: no node %q", ErrNode, name)
}

func (c commands) jobs(ctx context.Context) ([]jobInfo, error) {
	var js []jobInfo
	return js, c.do(ctx, "query-block-jobs", nil, &js)
}

// job returns nil when there is none of that id.
func (c commands) job(ctx context.Context, id string) (*jobInfo, error) {
	js, err := c.jobs(ctx)
	for _, j := range js {
		if j.ID == id {
			return &j, err
		}
	}
	return nil, err
}

// jobGone returns once there is no job of that id.
func (c commands) jobGone(ctx context.Context, id string) error {
	const look = 2 * time.Millisecond
	for {
		if j, err := c.job(ctx, id); err != nil || j == nil {
			return err
		}
		if !rest(ctx, c.Done(), look) {
			return errors.Join(context.Cause(ctx), c.Err())
		}
	}
}

// addTarget makes a node of our capture export. reconnect-delay 0: a restarted
// server must never be taken for the one that holds what was acknowledged.
func (c commands) addTarget(ctx context.Context, node, socket, export string) error {
	return c.do(ctx, "blockdev-add", args{
		"driver": "nbd", "node-name": node, "export": export, "reconnect-delay": 0,
		"server": args{"type": "unix", "path": socket},
	}, nil)
}

// mirror starts the tap. sync=none: QEMU copies nothing by itself, every guest
// write is sent on. Errors end the job and never reach the guest.
func (c commands) mirror(ctx context.Context, job, node, target string) error {
	return c.do(ctx, "blockdev-mirror", args{
		"job-id": job, "device": node, "target": target, "sync": "none",
		"copy-mode": "write-blocking", "on-source-error": "report", "on-target-error": "report",
	}, nil)
}

// cancelJob ends a mirror softly: QEMU drains the guest's writes, then the job
// completes without a switch to its target. Never with force; see tap.
func (c commands) cancelJob(ctx context.Context, id string) error {
	return c.do(ctx, "block-job-cancel", args{"device": id, "force": false}, nil)
}

func (c commands) deleteNode(ctx context.Context, node string) error {
	return c.do(ctx, "blockdev-del", args{"node-name": node}, nil)
}

// addBitmap adds it plainly: inside a transaction the add would drain the node,
// and a silent target would freeze the monitor with it.
func (c commands) addBitmap(ctx context.Context, node, name string, granularity int64, persistent, disabled bool) error {
	a := args{"node": node, "name": name, "granularity": granularity, "disabled": disabled}
	if persistent {
		a["persistent"] = true
	}
	return c.do(ctx, "block-dirty-bitmap-add", a, nil)
}

func (c commands) removeBitmap(ctx context.Context, node, name string) error {
	return c.do(ctx, "block-dirty-bitmap-remove", args{"node": node, "name": name}, nil)
}

func (c commands) mergeBitmaps(ctx context.Context, node, into string, from []string) error {
	return c.do(ctx, "block-dirty-bitmap-merge", args{"node": node, "target": into, "bitmaps": from}, nil)
}

func (c commands) startNBD(ctx context.Context, socket string) error {
	return c.do(ctx, "nbd-server-start", args{"addr": args{"type": "unix", "data": args{"path": socket}}, "max-connections": 64}, nil)
}

func (c commands) stopNBD(ctx context.Context) error { return c.do(ctx, "nbd-server-stop", nil, nil) }

// exportForReading offers a node read-only; bitmap may be empty.
func (c commands) exportForReading(ctx context.Context, id, node, name, bitmap string) error {
	a := args{"type": "nbd", "id": id, "node-name": node, "name": name, "writable": false}
	if bitmap != "" {
		a["bitmaps"] = []string{bitmap}
	}
	return c.do(ctx, "block-export-add", a, nil)
}

func (c commands) deleteExport(ctx context.Context, id string) error {
	return c.do(ctx, "block-export-del", args{"id": id, "mode": "hard"}, nil)
}

func (c commands) exports(ctx context.Context) ([]string, error) {
	var es []struct {
		ID string `json:"id"`
	}
	err := c.do(ctx, "query-block-exports", nil, &es)
	ids := make([]string, len(es))
	for i, e := range es {
		ids[i] = e.ID
	}
	return ids, err
}

// yank cuts a node's connection, whatever the main loop is waiting for.
func (c commands) yank(ctx context.Context, node string) error {
	return c.ExecuteOOB(ctx, "yank", args{"instances": []args{{"type": "block-node", "node-name": node}}}, nil)
}
