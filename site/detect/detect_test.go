package detect

import (
	"bytes"
	"compress/flate"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/novacron/afterimage/testbed/scale"
)

// disk is a volume of blocks, watched as a site watches one.
type disk struct {
	rng    *rand.Rand
	blocks map[int64][]byte
	meter  Meter
	d      *Detector
	now    time.Time
	batch  []Sample
	n      int64 // bytes since the last stretch
	wrote  int64
	report Report
	alarms int
}

func newDisk(seed uint64) *disk {
	return &disk{rng: rand.New(rand.NewPCG(seed, 7)), blocks: map[int64][]byte{}, d: New(Options{}), now: time.Unix(1e9, 0)}
}

// write is one request of whole blocks. A stretch is so many bytes, as a second is.
func (k *disk) write(block int64, p []byte) {
	if stands, ok := k.meter.Pick(int64(len(p))); ok {
		at := int64(0)
		if n := int64(len(p)) / SampleBytes; n > 1 {
			at = k.rng.Int64N(n)
		}
		k.batch = append(k.batch, Sample{Was: Classify(k.blocks[block+at]), Is: Classify(p[at*SampleBytes:]), StandsFor: stands})
	}
	for i := int64(0); i*SampleBytes < int64(len(p)); i++ {
		k.blocks[block+i] = p[i*SampleBytes : (i+1)*SampleBytes]
	}
	k.wrote += int64(len(p))
	if k.n += int64(len(p)); k.n >= 4<<20 {
		was := k.report.Suspect
		k.report = k.d.Stretch(k.now, k.batch)
		if k.report.Suspect && !was {
			k.alarms++
		}
		k.batch, k.n, k.now = nil, 0, k.now.Add(time.Second)
		k.meter.Refill()
	}
}

// Pools of what disks hold; a disk takes pieces of them.
var legiblePool, noisePool, compressedPool = pools()

func pools() (legible, noise, compressed []byte) {
	const size = 1 << 20
	rng := rand.New(rand.NewPCG(1, 2))
	for len(legible) < size {
		legible = fmt.Appendf(legible, "%08d|customer %d|%x|order of the day\x00\x00\x00\x00", rng.IntN(1e8), rng.IntN(5000), rng.Uint32())
	}
	noise = make([]byte, size)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	for err == nil && b.Len() < size {
		_, err = w.Write(legible[rng.IntN(size/2):])
	}
	if err != nil {
		panic(err)
	}
	return legible, noise, b.Bytes()
}

// legible is a block like text or a database's page.
func (k *disk) legible(n int) []byte { return k.piece(legiblePool, n) }

func (k *disk) noise(n int) []byte { return k.piece(noisePool, n) }

// compressed is a piece of a compressed stream.
func (k *disk) compressed(n int) []byte { return k.piece(compressedPool, n) }

func (k *disk) piece(pool []byte, n int) []byte {
	at := k.rng.IntN(len(pool) - n)
	return pool[at : at+n : at+n]
}

// database writes pages over pages: most in place, some new.
func (k *disk) database(bytes int64) {
	for n := int64(0); n < bytes; n += 8192 {
		k.write(k.rng.Int64N(8000)*2, k.legible(8192))
	}
}

// files are legible ones, one after the other.
func (k *disk) files(from, blocks int64) {
	for b := from; b < from+blocks; b += 16 {
		k.write(b, k.legible(16*SampleBytes))
	}
}

// encrypt goes over files, as ransomware does: read, encrypt, write back.
func (k *disk) encrypt(from, blocks int64, done func() bool) {
	block, err := aes.NewCipher(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		panic(err)
	}
	c := cipher.NewCTR(block, make([]byte, 16))
	for b := from; b < from+blocks && !done(); b += 16 {
		p := make([]byte, 16*SampleBytes)
		for i := range int64(16) {
			copy(p[i*SampleBytes:], k.blocks[b+i])
		}
		c.XORKeyStream(p, p)
		k.write(b, p)
	}
}

// An encryption is found within 24 MiB of it, over a disk that nobody has seen before
// and over one with a database that goes on beside it; and it is known when it began.
func TestEncryptionIsFound(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	n := scale.Scale(20)
	for i := range n {
		for _, beside := range []bool{false, true} {
			k := newDisk(seed + uint64(i))
			k.files(1<<20, 16<<10) // 64 MiB
			if beside {
				k.database(64 << 20)
			}
			if k.report.Suspect {
				t.Fatal("an alarm before anything happened")
			}
			began, clean := k.wrote, k.now
			k.encrypt(1<<20, 16<<10, func() bool {
				if beside {
					k.database(64 << 10) // as much again
				}
				return k.report.Suspect
			})
			took := k.wrote - began
			if beside {
				took /= 2
			}
			if !k.report.Suspect || took > 24<<20 || k.report.Since.Before(clean) || k.report.Since.After(clean.Add(2*time.Second)) {
				t.Fatalf("beside a database %v: after %d KiB of encryption %+v, it began at %v", beside, took>>10, k.report, clean)
			}
		}
	}
	scale.Counted(t, "detect-encryptions", 2*n, 40)
}

// None of what a machine does all day is taken for one.
func TestNormalLoadsAreNoAlarm(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	loads := map[string]func(k *disk){
		"database": func(k *disk) { k.database(256 << 20) },
		"mkfs over files": func(k *disk) {
			k.files(0, 16<<10)
			for b := int64(0); b < 16<<10; b += 2048 {
				k.write(b, make([]byte, 64*SampleBytes))
				k.write(b+64, k.legible(8*SampleBytes))
			}
		},
		"copy of archives to free space": func(k *disk) {
			k.files(0, 8<<10)
			for b := int64(1 << 20); b < 1<<20+16<<10; b += 64 {
				k.write(b, k.compressed(64*SampleBytes))
			}
		},
		"archives over archives": func(k *disk) {
			for range 2 {
				for b := int64(0); b < 8<<10; b += 64 {
					k.write(b, k.compressed(64*SampleBytes))
				}
			}
		},
		"vacuum": func(k *disk) {
			k.files(0, 16<<10)
			for b := int64(0); b < 16<<10; b += 16 { // tables written anew over freed ones
				k.write((b*7)%(16<<10), k.legible(16*SampleBytes))
			}
		},
		"database with a few compressed pages": func(k *disk) {
			k.database(64 << 20)
			for range 2000 {
				k.database(128 << 10)
				k.write(k.rng.Int64N(8000)*2, k.noise(8192)) // a blob over a page: 6 % of the writes
			}
		},
		"a guest's own encryption": func(k *disk) {
			for range 3 {
				for b := int64(0); b < 8<<10; b += 16 {
					k.write(b, k.noise(16*SampleBytes))
				}
			}
		},
	}
	n := scale.Scale(10)
	for name, load := range loads {
		for i := range n {
			k := newDisk(seed + uint64(i))
			load(k)
			if k.alarms > 0 {
				t.Errorf("%s: %d alarms, %+v", name, k.alarms, k.report)
			}
			if name == "a guest's own encryption" != k.report.Blind {
				t.Errorf("%s: blind %v", name, k.report.Blind)
			}
		}
	}
	scale.Counted(t, "detect-loads", n*len(loads), 70)
}

func TestClasses(t *testing.T) {
	k := newDisk(1)
	for name, c := range map[string]struct {
		p    []byte
		want Class
	}{
		"nothing": {nil, Unknown}, "zeros": {make([]byte, 4096), Zeros}, "ones": {bytes.Repeat([]byte{255}, 4096), Zeros}, "a sector of noise": {k.noise(512), Noise},
		"noise": {k.noise(4096), Noise}, "pages": {k.legible(8192), Legible}, "a sector of pages": {k.legible(512), Legible}, "compressed": {k.compressed(4096), Noise},
	} {
		if got := Classify(c.p); got != c.want {
			t.Errorf("%s is %d, want %d", name, got, c.want)
		}
	}
	m := Meter{Every: 100, Most: 2}
	picked := 0
	for range 10 {
		if _, ok := m.Pick(60); ok {
			picked++
		}
	}
	if picked != 2 {
		t.Errorf("%d samples, 2 at most", picked)
	}
	m.Refill()
	if stands, ok := m.Pick(1); !ok || stands != 361 {
		t.Errorf("after a pause a sample stands for %d, %v", stands, ok)
	}
}

func BenchmarkClassify(b *testing.B) {
	p := newDisk(1).noise(SampleBytes)
	b.SetBytes(SampleBytes)
	for b.Loop() {
		Classify(p)
	}
}
