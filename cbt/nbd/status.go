package nbd

import (
	"context"

	"github.com/novacron/afterimage/cbt"
)

// The server asks a device for at most statusSpanBytes at a time and sends at
// most maxDescriptors: a reply may be shorter than the request. statusWeight
// is what a question counts against the connection's bytes; it covers a device
// that tells every cell apart.
const (
	statusSpanBytes     = 256 << 20
	maxDescriptors      = 64 << 10
	statusWeight        = 2 << 20
	allocationContextID = 1
)

// statusReply asks the device and answers q with one BLOCK_STATUS chunk.
func statusReply(ctx context.Context, d Device, q request) (*reply, error) {
	e := q.extent()
	e.Length = min(e.Length, statusSpanBytes)
	pieces, err := d.Status(ctx, e)
	if err != nil {
		return nil, err
	}
	one := q.flags&cmdFlagReqOne != 0
	payload := describe(pieces, e, one)
	if len(payload) == 0 {
		return nil, &RemoteError{Command: "status", Errno: EIO, Message: "device told nothing about " + e.String()}
	}
	head := make([]byte, chunkBytes+4, chunkBytes+4+len(payload))
	putChunk(head, chunkDone, chunkBlockStatus, q.cookie, uint32(4+len(payload)))
	be.PutUint32(head[chunkBytes:], allocationContextID)
	return &reply{head: append(head, payload...)}, nil
}

// describe encodes pieces, clamped to e, neighbours of one kind joined; at most
// maxDescriptors, or the first only. A piece without length ends the answer.
func describe(pieces []StatusExtent, e cbt.Extent, one bool) []byte {
	var out []byte
	left := e.Length
	last, length := uint32(0), int64(0)
	limit := maxDescriptors
	if one {
		limit = 1
	}
	put := func() {
		if length > 0 {
			out = be.AppendUint32(be.AppendUint32(out, uint32(length)), last)
			length = 0
		}
	}
	for _, p := range pieces {
		n := min(p.Length, left)
		if n <= 0 {
			break
		}
		var flags uint32
		if p.Hole {
			flags |= StateHole
		}
		if p.Zero {
			flags |= StateZero
		}
		if flags != last && length > 0 {
			put()
			if len(out)/8 == limit {
				break
			}
		}
		last, length, left = flags, length+n, left-n
	}
	put()
	return out
}
