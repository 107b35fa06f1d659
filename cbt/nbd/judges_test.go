package nbd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/cbt/nbd"
	"github.com/novacron/afterimage/cbt/nbd/nbdtest"
)

// need finds tools; where the testbed is promised their absence is a failure.
func need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err == nil {
			continue
		}
		if os.Getenv("CI") != "" || os.Getenv("AFTERIMAGE_TESTBED") == "1" {
			t.Fatalf("%s is not installed; testbed/check installs it", tool)
		}
		t.Skipf("%s is not installed; testbed/check installs it", tool)
	}
}

// tool runs a program to its end and returns what it printed.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// randomDisk has data, zeroed and untouched parts.
func randomDisk(t testing.TB, size int64) *nbdtest.Memory {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	m, ctx := nbdtest.NewMemory(size), context.Background()
	for range 20 {
		p := make([]byte, 1+r.IntN(300_000))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		must(t, m.WriteAt(ctx, p, r.Int64N(size-int64(len(p))), false))
	}
	return m
}

// forBoth runs f against a server on a unix socket and one on TCP.
func forBoth(t *testing.T, f func(t *testing.T, network string)) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) { f(t, network) })
	}
}

func TestJudgeQemuIO(t *testing.T) {
	need(t, "qemu-io")
	forBoth(t, func(t *testing.T, network string) {
		m := nbdtest.NewMemory(64 << 20)
		s := serve(t, network, nbd.ServerOptions{}, m.Export("disk"))
		out := tool(t, "qemu-io", "-f", "raw", "-d", "unmap",
			"-c", "write -P 0xab 513 1000", "-c", "write -f -P 0xcd 1M 2M", "-c", "write -z 1536k 64k",
			"-c", "discard 2M 128k", "-c", "flush",
			"-c", "read -P 0xab 513 1000", "-c", "read -P 0xcd 1M 512k", "-c", "read -P 0 1536k 64k", "-c", "read -P 0 2M 128k",
			"-c", "aio_write -P 1 8M 64k", "-c", "aio_write -P 2 9M 64k", "-c", "aio_flush", "-c", "read -P 2 9M 64k",
			s.uri("disk"))
		if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
			t.Errorf("qemu-io complains:\n%s", out)
		}
		if got := m.Bytes()[513:1513]; !bytes.Equal(got, bytes.Repeat([]byte{0xab}, 1000)) {
			t.Error("an unaligned write did not arrive as it was")
		}
		if m.Flushes() < 2 {
			t.Errorf("%d flushes arrived, want FUA and FLUSH", m.Flushes())
		}
	})
}

func TestJudgeQemuImg(t *testing.T) {
	need(t, "qemu-img")
	forBoth(t, func(t *testing.T, network string) {
		m, empty := randomDisk(t, 40<<20), nbdtest.NewMemory(40<<20)
		s := serve(t, network, nbd.ServerOptions{}, m.Export("disk"), empty.Export("copy"))
		image := filepath.Join(t.TempDir(), "image.qcow2")
		tool(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", s.uri("disk"), image)
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", s.uri("disk"), image)
		tool(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", image, s.uri("copy"))
		tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", s.uri("disk"), s.uri("copy"))
		if !bytes.Equal(m.Bytes(), empty.Bytes()) {
			t.Error("qemu-img says equal, the bytes differ")
		}
		must(t, m.WriteAt(testContext(t), []byte("x"), 12345, false))
		if err := exec.Command("qemu-img", "compare", "-f", "raw", "-F", "raw", s.uri("disk"), s.uri("copy")).Run(); err == nil {
			t.Error("qemu-img does not see a byte that differs")
		}
	})
}

func TestJudgeNbdinfo(t *testing.T) {
	need(t, "nbdinfo")
	forBoth(t, func(t *testing.T, network string) {
		m := nbdtest.NewMemory(8 << 20)
		must(t, m.WriteAt(testContext(t), make([]byte, 64<<10), 1<<20, false))
		x := m.Export("disk")
		x.Description, x.ReadOnly = "a disk for the judge", true
		s := serve(t, network, nbd.ServerOptions{}, x, m.Export("other"))
		var info struct {
			Protocol   string
			Structured bool
			Exports    []struct {
				Description string
				Size        int64 `json:"export-size"`
				ReadOnly    bool  `json:"is_read_only"`
				MultiConn   bool  `json:"can_multi_conn"`
				FUA         bool  `json:"can_fua"`
				DF          bool  `json:"can_df"`
				Least       int64 `json:"block_size_minimum"`
				Preferred   int64 `json:"block_size_preferred"`
				Most        int64 `json:"block_size_maximum"`
				Contexts    []string
			}
		}
		must(t, json.Unmarshal([]byte(tool(t, "nbdinfo", "--json", s.uri("disk"))), &info))
		got := fmt.Sprintf("%+v", info)
		want := "{Protocol:newstyle-fixed Structured:true Exports:[{Description:a disk for the judge Size:8388608 ReadOnly:true" +
			" MultiConn:false FUA:true DF:true Least:1 Preferred:4096 Most:33554432 Contexts:[base:allocation]}]}"
		if got != want {
			t.Errorf("nbdinfo sees\n%s, want\n%s", got, want)
		}
		var pieces []struct {
			Offset, Length int64
			Type           int
		}
		must(t, json.Unmarshal([]byte(tool(t, "nbdinfo", "--map", "--json", s.uri("disk"))), &pieces))
		if got, want := fmt.Sprint(pieces), "[{0 1048576 3} {1048576 65536 0} {1114112 7274496 3}]"; got != want {
			t.Errorf("nbdinfo --map: %s, want %s", got, want)
		}
		if out := tool(t, "nbdinfo", "--list", s.uri("")); !strings.Contains(out, `export="other"`) {
			t.Errorf("nbdinfo --list does not show the other export:\n%s", out)
		}
	})
}

func TestJudgeNbdcopy(t *testing.T) {
	need(t, "nbdcopy")
	forBoth(t, func(t *testing.T, network string) {
		m, copied := randomDisk(t, 40<<20), nbdtest.NewMemory(40<<20)
		x, y := m.Export("disk"), copied.Export("copy")
		x.MultiConn, y.MultiConn = true, true
		s := serve(t, network, nbd.ServerOptions{}, x, y)
		tool(t, "nbdcopy", "--flush", s.uri("disk"), s.uri("copy"))
		if !bytes.Equal(m.Bytes(), copied.Bytes()) {
			t.Error("the copy differs")
		}
	})
}

func TestJudgeFio(t *testing.T) {
	need(t, "fio")
	forBoth(t, func(t *testing.T, network string) {
		m := nbdtest.NewMemory(32 << 20)
		s := serve(t, network, nbd.ServerOptions{}, m.Export("disk"))
		for _, job := range [][]string{{"--rw=randwrite", "--bs=4k"}, {"--rw=randwrite", "--bs=512"}, {"--rw=write", "--bs=1m"}} {
			tool(t, "fio", append(job, "--name=judge", "--ioengine=nbd", "--uri="+s.uri("disk"), "--iodepth=32",
				"--io_size=8m", "--size=32m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0", "--minimal")...)
		}
	})
}

// TestJudgeNbdkitPlugin lets nbdkit's nbd plugin, which is libnbd, stand between
// two of our ends.
func TestJudgeNbdkitPlugin(t *testing.T) {
	need(t, "nbdkit")
	m := nbdtest.NewMemory(4 << 20)
	s := serve(t, "unix", nbd.ServerOptions{}, m.Export("disk"))
	socket := nbdkit(t, "nbd", "uri="+s.uri("disk"))
	c := dial(t, "unix", socket, nbd.DialOptions{MetaContexts: []string{nbd.ContextAllocation}})
	ctx := testContext(t)
	must(t, c.WriteAt(ctx, []byte("through"), 77777, true))
	if got := m.Bytes()[77777:][:7]; string(got) != "through" {
		t.Errorf("got %q", got)
	}
	es, err := c.BlockStatus(ctx, nbd.ContextAllocation, cbt.Extent{Length: 4 << 20})
	must(t, err)
	if len(es) != 3 || es[1].Extent != (cbt.Extent{Offset: 64 << 10, Length: 64 << 10}) {
		t.Errorf("status through nbdkit: %v", es)
	}
}
