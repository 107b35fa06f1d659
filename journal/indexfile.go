package journal

import (
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

// nodeKeyBytes is how much of a key of a block names the node; epoch and seq follow.
const nodeKeyBytes = 1 + 4 + 1 + 8

// nodeOrder is the order of bytes, and it tells Pebble which part of a key names the
// node: of that its filters are made, so that a look-up of a node reads no table
// that has no version of it.
func nodeOrder() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "afterimage.nodes"
	c.Split = func(k []byte) int {
		if len(k) > nodeKeyBytes && k[0] == prefixIndex {
			return nodeKeyBytes
		}
		return len(k)
	}
	return &c
}

const indexCacheBytes = 32 << 20

// pebbleOptions are the index's. Old versions are read as often as new ones, so
// their values stay beside their keys.
func (j *Journal) pebbleOptions() *pebble.Options {
	o := &pebble.Options{
		FS: j.o.FS, DisableWAL: true, FormatMajorVersion: pebble.FormatNewest, Comparer: nodeOrder(),
		MemTableSize: 16 << 20, CacheSize: j.o.indexBytes, Logger: pebbleLog{j},
		EventListener: &pebble.EventListener{DataCorruption: j.indexDamaged, BackgroundError: func(err error) { pebbleLog{j}.Errorf("%v", err) }},
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	o.Experimental.SpanPolicyFunc = func([]byte) (pebble.SpanPolicy, []byte, error) {
		return pebble.SpanPolicy{DisableValueSeparationBySuffix: true}, nil, nil
	}
	return o
}
