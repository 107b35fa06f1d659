package qemu

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/cbttest"
)

// failing is a node over file whose writes fail as those to a full file system do: all of
// them, or those that touch a sector.
func failing(file args, sector int64) args {
	var errs []args
	for _, kind := range []string{"write", "write-zeroes"} {
		e := args{"event": "none", "iotype": kind, "errno": int(syscall.ENOSPC)}
		if sector >= 0 {
			e["sector"] = sector
		}
		errs = append(errs, e)
	}
	x := args{"driver": "blkdebug", "image": file, "inject-error": errs}
	if name, named := file["node-name"]; named {
		x["node-name"] = name
		delete(file, "node-name")
	}
	return x
}

// What QEMU does with a guest's write when the target of a backup fails: of a job of QEMU
// 7.2 the guest's write fails. Behind a quorum of one vote, with a null device beside the
// target, nobody but an event tells of it, and the guest goes on. [T]
func TestFactBackupTargetThatFails(t *testing.T) {
	const spot = 2 << 20 // that cannot be copied aside
	for name, tc := range map[string]struct {
		target func(file args) args
		guest  bool // its writes succeed
	}{
		"plain": {func(file args) args { file["node-name"] = "target"; return failing(file, spot/cbt.SectorBytes) }, false},
		"quorum": {func(file args) args {
			file["node-name"] = "file"
			return args{"driver": "quorum", "node-name": "target", "vote-threshold": 1,
				"children": []args{failing(file, spot/cbt.SectorBytes), {"driver": "null-co", "size": 4 << 20}}}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := worldOf(t, cbttest.StartQEMU(t, cbttest.DiskSpec{Name: "a", Bytes: 4 << 20}))
			m, ctx := w.machine, cbttest.Context(t, patience)
			c := commands{qmpMonitor{m.Own}}
			events := qmpMonitor{m.Own}.Events(256)
			defer events.Close()
			if err := c.addBitmap(ctx, "a", "b", 65536, false, false); err != nil {
				t.Fatal(err)
			}
			w.write("a", bytes.Repeat([]byte{1}, 65536), 0)
			w.write("a", bytes.Repeat([]byte{1}, 65536), spot)
			path := m.Dir + "/scratch"
			if err := os.WriteFile(path, make([]byte, 4<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			m.Do(t, "blockdev-add", tc.target(args{"driver": "file", "filename": path}))
			// The job itself copies the first bit's bytes, and then waits for a day.
			m.Do(t, "transaction", args{"actions": []args{action("blockdev-backup", args{"job-id": "j", "device": "a", "target": "target", "sync": "incremental", "bitmap": "b",
				"auto-finalize": false, "speed": 1, "on-source-error": "report", "on-target-error": "report"})}})
			err := m.Write(t, "a", bytes.Repeat([]byte{2}, 4096), spot)
			t.Logf("%s: the guest's write: %v", name, err)
			if (err == nil) != tc.guest {
				t.Errorf("the guest's write to what is to be copied aside: %v", err)
			}
			if err := m.Write(t, "a", bytes.Repeat([]byte{2}, 4096), 3<<20); err != nil {
				t.Errorf("the guest's write to what is not: %v", err)
			}
			if !tc.guest {
				return
			}
			m.Do(t, "block-job-set-speed", args{"device": "j", "speed": 0})
			bad := ""
			for pending := false; !pending; {
				ev, err := events.Next(ctx)
				if err != nil {
					t.Fatal(err)
				}
				var data struct {
					Node   string `json:"node-name"`
					ID     string `json:"id"`
					Status string `json:"status"`
					Error  string `json:"error"`
				}
				if err := json.Unmarshal(ev.Data, &data); err != nil {
					t.Fatal(err)
				}
				if ev.Name == "QUORUM_REPORT_BAD" && data.Node == "file" {
					bad = data.Error
				}
				pending = ev.Name == "JOB_STATUS_CHANGE" && data.ID == "j" && data.Status == "pending"
			}
			if !strings.Contains(bad, "space") {
				t.Errorf("before the job was pending QEMU told %q of the file", bad)
			}
		})
	}
}

// A scratch that fails costs the point, and is told; the guest's writes go on, and once
// there is room the cycles do, with nothing lost.
func TestGuestGoesOnWhenScratchFails(t *testing.T) {
	w := worldOf(t, cbttest.StartQEMU(t, cbttest.DiskSpec{Name: "a", Bytes: 4 << 20}, cbttest.DiskSpec{Name: "b", Bytes: 4 << 20, Format: "qcow2"}))
	w.write("a", bytes.Repeat([]byte{7}, 1<<20), 0)
	var full atomic.Bool
	w.faults.scratch = func(file args) args {
		if full.Load() {
			return failing(file, -1)
		}
		return file
	}
	tr := w.cycles(10 * time.Millisecond)
	stop := w.run(tr)
	w.points(tr, 2)
	full.Store(true)
	before := tr.opts.Cut.Stats()
	w.write("a", bytes.Repeat([]byte{8}, 256<<10), 0)
	cbttest.Eventually(t, patience, "the failure is told", func() bool {
		st := tr.Status()[0]
		return st.Cause == cbt.CauseDiskFull && strings.Contains(st.Detail, "aside")
	})
	for i := range int64(50) { // each of them may meet a cycle
		w.write("a", bytes.Repeat([]byte{byte(i)}, 4096), i<<12)
		w.write("b", bytes.Repeat([]byte{byte(i)}, 4096), i<<12)
	}
	if now := tr.opts.Cut.Stats(); now.Points > before.Points+1 { // one may have been under way
		t.Errorf("%d points were made of copies that failed", now.Points-before.Points)
	}
	full.Store(false)
	w.points(tr, 3)
	stop()
	w.checkImages()
	for _, st := range tr.Status() {
		if st.Resync.Full {
			t.Errorf("%s was read whole: %s", st.Volume.Name, st.Resync.Why)
		}
	}
}
