package nbd

import (
	"context"
	"fmt"

	"github.com/novacron/afterimage/cbt"
)

// StatusFlags is a piece of a meta context: the state bits of an extent.
type StatusFlags struct {
	Extent cbt.Extent
	Flags  uint32 // StateHole and StateZero, or StateDirty, or another context's
}

// BlockStatus tells the state of all of e in the given meta context, in order,
// neighbours of one state joined. A server may answer for less than it was
// asked; then the rest is asked for. A server that does not get on, or tells of
// more than was asked before its last piece, breaks the protocol, and nothing
// of what it said is returned.
func (c *Client) BlockStatus(ctx context.Context, metaContext string, e cbt.Extent) ([]StatusFlags, error) {
	id, ok := c.meta[metaContext]
	if !ok {
		return nil, fmt.Errorf("block status in %q: %w", metaContext, ErrNoMetaContext)
	}
	if err := c.check(e); err != nil {
		return nil, err
	}
	select {
	case c.asking <- struct{}{}:
		defer func() { <-c.asking }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	var out []StatusFlags
	for e.Length > 0 {
		ask := cbt.Extent{Offset: e.Offset, Length: min(e.Length, maxRangeBytes)}
		cl := &call{cmd: cmdBlockStatus, extent: ask, context: id}
		if err := c.do(ctx, cl); err != nil {
			return nil, err
		}
		told, err := parseDescriptors(&out, ask, cl.status)
		if err != nil {
			c.fail(err)
			return nil, err
		}
		e.Offset, e.Length = e.Offset+told, e.Length-told
	}
	return out, nil
}

// parseDescriptors appends what b says about ask to out and returns for how
// many bytes of it b speaks. Only the last descriptor may reach beyond the end.
func parseDescriptors(out *[]StatusFlags, ask cbt.Extent, b []byte) (int64, error) {
	var told int64
	for ; len(b) >= 8; b = b[8:] {
		length, flags := int64(be.Uint32(b)), be.Uint32(b[4:])
		switch {
		case length == 0:
			return 0, violation("status descriptor without length")
		case told >= ask.Length:
			return 0, violation("status descriptors beyond the request")
		}
		piece := cbt.Extent{Offset: ask.Offset + told, Length: min(length, ask.Length-told)}
		told += piece.Length
		if k := len(*out) - 1; k >= 0 && (*out)[k].Flags == flags && (*out)[k].Extent.End() == piece.Offset {
			(*out)[k].Extent.Length += piece.Length
			continue
		}
		*out = append(*out, StatusFlags{piece, flags})
	}
	return told, nil
}
