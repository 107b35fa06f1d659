package witness

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/logutil"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/novacron/afterimage/cbt"
)

// EtcdOptions say where an etcd cluster is.
type EtcdOptions struct {
	Endpoints []string
	TLS       *tls.Config   // nil: plain
	Prefix    string        // of keys; default "/afterimage/lease/"
	Dial      time.Duration // patience per connection; default 5 s
}

// Etcd is a Witness in an etcd cluster, version 3.4 or later.
//
// A lease is an etcd lease with one key, made only where there is none. Etcd ends
// a lease no earlier than its time to live after it received the last renewal,
// and later if it elects a leader meanwhile.
// Source: etcd, "Lock and lease" of api-guarantees, and server/lease/lessor.go.
type Etcd struct {
	client *clientv3.Client
	prefix string
}

var _ Witness = (*Etcd)(nil)

// logNothingBelow is zap's fatal level: what the client meets is in its errors.
const logNothingBelow = 5

// tidyPatience bounds the giving back of a lease that could not be used.
const tidyPatience = 2 * time.Second

// OpenEtcd makes a client; it connects when first asked.
func OpenEtcd(o EtcdOptions) (*Etcd, error) {
	if o.Prefix == "" {
		o.Prefix = "/afterimage/lease/"
	}
	if o.Dial <= 0 {
		o.Dial = 5 * time.Second
	}
	log, err := logutil.CreateDefaultZapLogger(logNothingBelow)
	if err != nil {
		return nil, fmt.Errorf("open etcd: %w", err)
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: o.Endpoints, TLS: o.TLS, DialTimeout: o.Dial, Logger: log,
		DialKeepAliveTime: o.Dial, DialKeepAliveTimeout: o.Dial,
	})
	if err != nil {
		return nil, fmt.Errorf("open etcd: %w", err)
	}
	return &Etcd{c, o.Prefix}, nil
}

// Close frees the client; leases end after their ttl.
func (e *Etcd) Close() error { return e.client.Close() }

func (e *Etcd) key(group cbt.ID) string { return e.prefix + group.String() }

// Acquire implements Witness.
func (e *Etcd) Acquire(ctx context.Context, group cbt.ID, holder string, ttl time.Duration) (*Lease, error) {
	return e.acquire(ctx, group, holder, ttl)
}

// AcquireAfter is Acquire if last is who took it last; ErrHeld where somebody else did.
func (e *Etcd) AcquireAfter(ctx context.Context, group cbt.ID, holder string, ttl time.Duration, last string) (*Lease, error) {
	if last == "" { // also where nothing was ever written
		now, err := e.Last(ctx, group)
		if err != nil {
			return nil, err
		}
		if now != "" {
			return nil, fmt.Errorf("acquire lease of group %s: %w: %q took it since", group.Short(), ErrHeld, now)
		}
		return e.acquire(ctx, group, holder, ttl)
	}
	return e.acquire(ctx, group, holder, ttl, clientv3.Compare(clientv3.Value(e.lastKey(group)), "=", last))
}

func (e *Etcd) acquire(ctx context.Context, group cbt.ID, holder string, ttl time.Duration, also ...clientv3.Cmp) (*Lease, error) {
	if err := CheckTTL(ttl); err != nil {
		return nil, err
	}
	from := time.Now()
	seconds := int64((ttl + time.Second - 1) / time.Second)
	granted, err := e.client.Grant(ctx, seconds)
	if err != nil {
		return nil, fmt.Errorf("acquire lease of group %s: %w", group.Short(), err)
	}
	g := &etcdGrant{e: e, key: e.key(group), id: granted.ID}
	reply, err := e.client.Txn(ctx).
		If(append(also, clientv3.Compare(clientv3.CreateRevision(g.key), "=", 0))...).
		Then(clientv3.OpPut(g.key, holder, clientv3.WithLease(g.id)), clientv3.OpPut(e.lastKey(group), holder)).
		Else(clientv3.OpGet(g.key)).
		Commit()
	switch {
	case err != nil:
		err = fmt.Errorf("acquire lease of group %s: %w", group.Short(), err)
	case !reply.Succeeded:
		held := &HeldError{Group: group, Holder: "nobody, but another took it since"}
		for _, kv := range reply.Responses[0].GetResponseRange().Kvs {
			held.Holder = string(kv.Value)
		}
		err = held
	default:
		g.revision = reply.Header.Revision
		return NewLease(from, ttl, uint64(g.revision), g), nil
	}
	// What cannot be given back ends by itself.
	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyPatience)
	defer cancel()
	_ = g.Release(after)
	return nil, err
}

// Holder implements Witness.
func (e *Etcd) Holder(ctx context.Context, group cbt.ID) (string, bool, error) {
	reply, err := e.client.Get(ctx, e.key(group))
	if err != nil {
		return "", false, fmt.Errorf("holder of group %s: %w", group.Short(), err)
	}
	if len(reply.Kvs) == 0 {
		return "", false, nil
	}
	return string(reply.Kvs[0].Value), true, nil
}

// etcdGrant is an etcd lease and the key that lives by it.
type etcdGrant struct {
	e        *Etcd
	key      string
	id       clientv3.LeaseID
	revision int64 // at which key was made
}

// Renew implements Grant. A key that somebody removed or made anew is lost, even
// though the etcd lease lives.
func (g *etcdGrant) Renew(ctx context.Context) error {
	_, err := g.e.client.KeepAliveOnce(ctx, g.id)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("etcd lease %x has ended: %w", int64(g.id), ErrLost)
	}
	if err != nil {
		return err
	}
	reply, err := g.e.client.Get(ctx, g.key)
	if err != nil {
		return err
	}
	if len(reply.Kvs) == 0 || reply.Kvs[0].CreateRevision != g.revision {
		return fmt.Errorf("key %s was removed: %w", g.key, ErrLost)
	}
	return nil
}

// Release implements Grant.
func (g *etcdGrant) Release(ctx context.Context) error {
	_, err := g.e.client.Revoke(ctx, g.id)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}
