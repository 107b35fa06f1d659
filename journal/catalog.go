package journal

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/novacron/afterimage/cbt"
)

// through is how far the index has come: one key, written with every batch, so
// that what Pebble has flushed is always the frames up to frameEnd and nothing
// else. Opening reads the segments again from Durable, which was known to survive
// power loss when the batch was made.
type through struct {
	frameEnd
	Durable frameEnd `json:"durable"`
	Samples sampling `json:"samples"`
	Site    uint64   `json:"site,omitempty"` // entries of the site log before the batch
	// ReadOnly says that a frame carries a feature that this version may not write after.
	ReadOnly bool `json:"read_only,omitempty"`
}

// sampling decides which frames get a sample: the first of an epoch or segment,
// and one every so many records or bytes.
type sampling struct {
	Segment uint64 `json:"segment"`
	Seq     Seq    `json:"seq"`
	Offset  int64  `json:"offset"`
}

const (
	sampleRecords = 256
	sampleBytes   = 1 << 20
)

func (s *sampling) due(w *written, first bool) bool {
	if !first && w.segment == s.Segment && w.h.First < s.Seq+sampleRecords && w.offset < s.Offset+sampleBytes {
		return false
	}
	*s = sampling{w.segment, w.h.First, w.offset}
	return true
}

// sample is where a frame lies, and the chain value before it.
type sample struct {
	segment uint64
	offset  int64
	time    time.Time
	before  Chain
}

func sampleKey(ordinal uint32, s Seq) []byte {
	b := append([]byte(nil), prefixSample)
	b = binary.BigEndian.AppendUint32(b, ordinal)
	return binary.BigEndian.AppendUint64(b, uint64(s))
}

func (s sample) encode() []byte {
	b := binary.BigEndian.AppendUint64(nil, s.segment)
	b = binary.BigEndian.AppendUint64(b, uint64(s.offset))
	b = binary.BigEndian.AppendUint64(b, uint64(s.time.UnixNano()))
	return append(b, s.before[:]...)
}

func decodeSample(b []byte) (sample, error) {
	if len(b) != 56 {
		return sample{}, fmt.Errorf("sample of %d bytes", len(b))
	}
	s := sample{segment: binary.BigEndian.Uint64(b), offset: int64(binary.BigEndian.Uint64(b[8:])), time: time.Unix(0, int64(binary.BigEndian.Uint64(b[16:])))}
	copy(s.before[:], b[24:])
	return s, nil
}

func branchKey(ordinal uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixBranch}, ordinal)
}

func levelsKey(volume uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixLevels}, volume)
}

// happenKey orders control records by kind, epoch and seq.
func happenKey(k Kind, ordinal uint32, s Seq) []byte {
	b := []byte{prefixHappen}
	b = binary.BigEndian.AppendUint16(b, uint16(k))
	b = binary.BigEndian.AppendUint32(b, ordinal)
	return binary.BigEndian.AppendUint64(b, uint64(s))
}

// stateKey orders the openings and closings of a volume's interval, newest first.
func stateKey(volume, ordinal uint32, s Seq) []byte {
	b := []byte{prefixState}
	b = binary.BigEndian.AppendUint32(b, volume)
	b = binary.BigEndian.AppendUint32(b, ^ordinal)
	return binary.BigEndian.AppendUint64(b, ^uint64(s))
}

// happening is the value of a control record.
type happening struct {
	Time   time.Time       `json:"time"`
	Volume uint32          `json:"volume,omitempty"`
	Body   json.RawMessage `json:"body,omitempty"`
}

func decodeBody(b []byte, v any) error {
	if len(b) == 0 {
		return nil
	}
	return json.Unmarshal(b, v)
}

// catalogue puts what a control record says into the batch.
func catalogue(b *pebble.Batch, r *record, ordinal uint32, s Seq) error {
	v := encodeBody(happening{r.time, r.volume, r.body})
	if r.kind == KindSynced || r.kind == KindGap {
		if err := b.Set(stateKey(r.volume, ordinal, s), []byte{byte(r.kind)}, nil); err != nil {
			return err
		}
	}
	return b.Set(happenKey(r.kind, ordinal, s), v, nil)
}

// eachHappening calls f for the records of kind k in l, oldest first.
func (j *Journal) eachHappening(k Kind, l Lineage, f func(Interval, Seq, happening) error) (err error) {
	it, err := j.iterate(happenKey(k, 0, 0), happenKey(k+1, 0, 0))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	ordinals := j.ordinalsOf(l)
	for n := 0; n < len(l); n++ {
		i := l[n]
		for ok := it.SeekGE(happenKey(k, ordinals[n], i.First)); ; ok = it.Next() {
			if !ok {
				return it.Error() // nothing newer
			}
			ordinal, s := happenedAt(it.Key())
			if ordinal != ordinals[n] || s > i.Last {
				for n+1 < len(l) && ordinals[n+1] < ordinal { // epochs without such a record
					n++
				}
				break
			}
			var h happening
			j.decoded.Add(1)
			if err := json.Unmarshal(it.Value(), &h); err != nil {
				return fmt.Errorf("read catalogue: %s record %d: %w", k, s, err)
			}
			if err := f(i, s, h); err != nil {
				return err
			}
		}
	}
	return it.Error()
}

// happenedAt is the epoch and seq of a happenKey.
func happenedAt(k []byte) (ordinal uint32, s Seq) {
	return binary.BigEndian.Uint32(k[3:]), Seq(binary.BigEndian.Uint64(k[7:]))
}

// ordinalsOf is the ordinals of l's epochs. They rise along a lineage.
func (j *Journal) ordinalsOf(l Lineage) []uint32 {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]uint32, len(l))
	o := len(j.branches)
	for n := len(l) - 1; n >= 0; n-- {
		for o > 0 && j.branches[o-1].ID != l[n].Epoch {
			o--
		}
		out[n] = uint32(o)
	}
	return out
}

// ordinalOf is the index's small number of an epoch; 0 when it is not held.
func (j *Journal) ordinalOf(e EpochID) uint32 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ordinalLocked(e)
}

func (j *Journal) ordinalLocked(e EpochID) uint32 {
	for i := len(j.branches) - 1; i >= 0; i-- {
		if j.branches[i].ID == e {
			return uint32(i + 1)
		}
	}
	return 0
}

// volumesIn is the volumes of l, by id, the newest size of each; those that have left
// as well.
func (j *Journal) volumesIn(l Lineage) (map[cbt.VolumeID]volumeBody, error) {
	out := make(map[cbt.VolumeID]volumeBody)
	err := j.eachHappening(KindVolume, l, func(_ Interval, s Seq, h happening) error {
		var v volumeBody
		if err := decodeBody(h.Body, &v); err != nil {
			return fmt.Errorf("read catalogue: volume record %d: %w", s, err)
		}
		out[v.ID] = v
		return nil
	})
	return out, err
}
