package witness_test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/novacron/afterimage/cbt"
	"github.com/novacron/afterimage/recovery/witness"
	"github.com/novacron/afterimage/recovery/witness/witnesstest"
	"github.com/novacron/afterimage/testbed/port"
	"github.com/novacron/afterimage/testbed/scale"
)

// etcd is a server of the test's own.
type etcd struct {
	url string
	cmd *exec.Cmd
}

func startEtcd(t *testing.T) *etcd {
	t.Helper()
	scale.Tools(t, "etcd")
	client, peer := "http://"+port.Address(t), "http://"+port.Address(t)
	e := &etcd{client, exec.Command("etcd", "--name", "w", "--data-dir", t.TempDir(),
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "w="+peer)}
	var said bytes.Buffer
	e.cmd.Stderr = &said
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.kill)
	w := e.open(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, time.Second)
		_, _, err := w.Holder(try, cbt.NewID())
		stop()
		if err == nil {
			return e
		}
		if ctx.Err() != nil {
			e.kill()
			t.Fatalf("etcd does not answer: %v\n%s", err, &said)
		}
	}
}

func (e *etcd) kill() {
	_ = e.cmd.Process.Kill()
	_ = e.cmd.Wait() // an error if it has been waited for
}

func (e *etcd) open(t *testing.T) *witness.Etcd {
	t.Helper()
	w, err := witness.OpenEtcd(witness.EtcdOptions{Endpoints: []string{e.url}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func TestEtcdConforms(t *testing.T) {
	e := startEtcd(t)
	t.Run("cases", func(t *testing.T) {
		for _, c := range witnesstest.Cases() {
			t.Run(c.Name, func(t *testing.T) {
				t.Parallel()
				c.Test(t, e.open(t))
			})
		}
	})
}

// A key that an operator removes is a lost lease at the next renewal.
func TestRemovedKeyIsLost(t *testing.T) {
	e := startEtcd(t)
	w, group := e.open(t), cbt.NewID()
	l, err := w.Acquire(t.Context(), group, "a", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.url}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r, err := c.Delete(t.Context(), "/afterimage/lease/"+group.String()); err != nil || r.Deleted != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := l.Renew(t.Context()); !errors.Is(err, witness.ErrLost) {
		t.Errorf("%v", err)
	}
	<-l.Lost()
}

// Without the witness a holder learns its loss in time, by its own clock.
func TestDeadEtcd(t *testing.T) {
	e := startEtcd(t)
	const ttl = 8 * time.Second
	l, err := e.open(t).Acquire(t.Context(), cbt.NewID(), "a", ttl)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.kill()
	from := time.Now()
	err = l.KeepAlive(t.Context())
	if took := time.Since(from); !errors.Is(err, witness.ErrLost) || took >= ttl { // at three quarters of it, and at the witness it ends at its end
		t.Errorf("after %v: %v", took, err)
	}
}
