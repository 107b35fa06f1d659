package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"

	"github.com/novacron/afterimage/cbt"
)

// sealedFrame is a frame of a sealed group: its epoch, its key, a packed and two
// plain payloads, all sealed.
func sealedFrame(t testing.TB) []byte {
	t.Helper()
	e := Epoch{Number: 1, ID: EpochID(fixedID(0xe1)), Site: "a", Begun: fixedTime.UTC()}
	k, err := newDataKey(fixedID(0x77), 1, bytes.Repeat([]byte{0x42}, dataKeyBytes))
	if err != nil {
		t.Fatal(err)
	}
	j := &Journal{
		identity: Identity{fixedID(0x11), fixedID(0x22), fixedID(0x33)}, inc: cbt.Incarnation(fixedID(0x44)),
		branches: []Branch{{Epoch: e}}, chained: []frameEnd{{}}, packer: newPacker(CompressAlways, SyncPower),
	}
	c := &commit{ordinal: 1, first: 1, sealer: &sealer{dataKey: k}, recs: []*record{
		{kind: KindEpoch, body: encodeBody(e)},
		{kind: KindKey, body: encodeBody(keyBody{Epoch: e.ID, ID: k.id, Number: 1, Incarnation: j.inc, Key: "acme-1", Wrapped: bytes.Repeat([]byte{0x99}, 60)})},
	}}
	for i, n := range []int{512, 5120, 16 << 10} {
		r := &record{kind: KindWrite, volume: 1, volumeID: cbt.VolumeID(fixedID(0x55)), extent: cbt.Extent{Offset: int64(i) * 3584, Length: int64(n)}, data: bytes.Repeat([]byte{0xab}, n), key: 1}
		r.cells = cellCRCs(r.extent.Offset, r.data)
		j.shrink(r)
		r.willSeal()
		for b := range r.nonce {
			r.nonce[b] = byte(i)
		}
		c.recs = append(c.recs, r)
	}
	for _, r := range c.recs {
		r.time = fixedTime
	}
	_, frame := frameOfCommit(j, c)
	return bytes.Clone(frame)
}

func TestGoldenSealed(t *testing.T) {
	frame := sealedFrame(t)
	golden(t, "frame-sealed.txt", frame)
	h, _, recs := decodeAll(t, frame)
	if h.Features.Incompat != flagPacked|flagSealed || h.KeyID != fixedID(0x77) {
		t.Errorf("features %#x, key %s", h.Features.Incompat, h.KeyID)
	}
	var index []byte
	for i, r := range recs[2:] {
		if err := indexRecord(r, 2, h.First+Seq(i), 7, pageBytes, func(k, v []byte) error {
			index = append(append(index, k...), v...)
			index = append(index, make([]byte, (16-len(index)%16)%16)...)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "index-sealed.txt", index)
}

// What no key opens and no codec made gives an error, whatever its table says.
func FuzzSealedFrame(f *testing.F) {
	frame := sealedFrame(f)
	seeds(f, frame)
	k, err := newDataKey(fixedID(0x77), 1, bytes.Repeat([]byte{0x42}, dataKeyBytes))
	if err != nil {
		f.Fatal(err)
	}
	want, _, sealed := decodeAll(f, frame)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 32 { // let changes get past the checksum
			if n := int(binary.LittleEndian.Uint32(b[20:])); n >= 32 && n <= len(b) {
				b = bytes.Clone(b)
				sealMeta(b[:n])
			}
		}
		h, meta, recs, err := readMeta(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		j := &Journal{identity: h.Identity, keys: newDataKeys()}
		for _, r := range recs {
			j.keys.ids[keyPlace{h.Epoch, r.key}] = k.id
		}
		j.keys.hold(k)
		for i, r := range recs {
			if !r.kind.hasPayload() {
				continue
			}
			s := h.First + Seq(i)
			p, err := j.payloadOf(r, cbt.VolumeID(fixedID(0x55)), h.Epoch, s, func(p []byte) error {
				if int64(len(b)) < r.payload+int64(len(p)) || r.payload < int64(len(meta)) {
					return errors.New("cut short")
				}
				copy(p, b[r.payload:])
				return nil
			})
			if err != nil || !r.sealed() {
				continue
			}
			if int(s) > len(sealed) || h.Identity.Tenant != want.Identity.Tenant || h.Identity.Group != want.Identity.Group || h.Epoch != want.Epoch ||
				r.extent != sealed[s-1].extent || r.kind != sealed[s-1].kind || !bytes.Equal(p, bytes.Repeat([]byte{0xab}, int(r.extent.Length))) {
				t.Fatalf("record %d of %v opens, and nobody sealed it", s, r.extent)
			}
		}
	})
}

func FuzzKeyRecord(f *testing.F) {
	seeds(f, encodeBody(keyBody{Epoch: EpochID{1}, ID: cbt.ID{2}, Number: 3, Incarnation: cbt.Incarnation{4}, Key: "acme-1", Wrapped: make([]byte, 60)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := decodeKeyBody(b)
		if err != nil {
			return
		}
		if again, err := decodeKeyBody(encodeBody(k)); err != nil || !reflect.DeepEqual(k, again) {
			t.Fatalf("%+v became %+v, %v", k, again, err)
		}
		d := newDataKeys()
		if err := d.learn(k); err != nil {
			t.Fatalf("learn %+v: %v", k, err)
		}
		if _, err := d.open(nil, Identity{}, k.Epoch, k.Number); !errors.Is(err, ErrNoKey) {
			t.Fatalf("it opens: %v", err)
		}
	})
}
