package witness

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/novacron/afterimage/cbt"
)

// A lease that ended says nothing of how: given back, or lost by a holder that may still
// think it runs the group. So who took the newest lease stays written beside it, under a
// key that lives by no lease, until that one gives the right back in so many words:
//
//	lease's key   who holds it now; gone with the lease
//	…/last        who took it last and did not give it back; "" or absent: nobody
//
// Only who is named there may run on under a new lease, and others may take over from it
// once its lease has ended: it stood under a watchdog. Where nobody is named, nobody
// promised to stand still.

func (e *Etcd) lastKey(group cbt.ID) string { return e.key(group) + "/last" }

// Last is who took the newest lease of a group and has not given it back.
func (e *Etcd) Last(ctx context.Context, group cbt.ID) (string, error) {
	last, _, err := e.LastAt(ctx, group)
	return last, err
}

// LastAt is Last and the revision at which that was written, which is that of the lease
// where one was taken; 0: nobody ever took one.
func (e *Etcd) LastAt(ctx context.Context, group cbt.ID) (string, int64, error) {
	reply, err := e.client.Get(ctx, e.lastKey(group))
	if err != nil {
		return "", 0, fmt.Errorf("last holder of group %s: %w", group.Short(), err)
	}
	if len(reply.Kvs) == 0 {
		return "", 0, nil
	}
	return string(reply.Kvs[0].Value), reply.Kvs[0].ModRevision, nil
}

// Hand writes that to, who may be nobody, follows holder as who took it last; it does
// nothing where somebody else took it since.
func (e *Etcd) Hand(ctx context.Context, group cbt.ID, holder, to string) error {
	_, err := e.client.Txn(ctx).
		If(clientv3.Compare(clientv3.Value(e.lastKey(group)), "=", holder)).
		Then(clientv3.OpPut(e.lastKey(group), to)).
		Commit()
	if err != nil {
		return fmt.Errorf("hand group %s on: %w", group.Short(), err)
	}
	return nil
}

// Saved is what another life of the holder needs to go on with a lease.
type Saved struct {
	ID       int64         `json:"id"`
	Revision int64         `json:"revision"`
	TTL      time.Duration `json:"ttl"`
}

// Save tells it of a lease that Acquire or Adopt gave.
func (e *Etcd) Save(l *Lease) Saved {
	g, ok := l.grant.(*etcdGrant)
	if !ok {
		return Saved{}
	}
	return Saved{ID: int64(g.id), Revision: g.revision, TTL: l.ttl}
}

// Adopt goes on with a lease of an earlier life of this holder, if it lives: ErrLost. That
// life must have ended.
func (e *Etcd) Adopt(ctx context.Context, group cbt.ID, s Saved) (*Lease, error) {
	g := &etcdGrant{e: e, key: e.key(group), id: clientv3.LeaseID(s.ID), revision: s.Revision}
	from := time.Now()
	if err := g.Renew(ctx); err != nil {
		return nil, fmt.Errorf("adopt lease of group %s: %w", group.Short(), err)
	}
	return NewLease(from, s.TTL, uint64(s.Revision), g), nil
}
