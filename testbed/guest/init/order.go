package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/novacron/afterimage/testbed/stamp"
)

// defaultSlots is how many slots a load uses when the disks hold as many.
const defaultSlots = 4096

// machine obeys one order at a time; only a load goes on between orders.
type machine struct {
	console *port
	volumes []*disk
	load    *load // nil when none was started
}

// params are an order's name=number words.
type params map[string]uint64

func (p params) get(name string, otherwise uint64) uint64 {
	if v, ok := p[name]; ok {
		return v
	}
	return otherwise
}

func parse(order string) (verb string, p params, err error) {
	words := strings.Fields(order)
	if len(words) == 0 {
		return "", nil, nil
	}
	p = params{}
	for _, word := range words[1:] {
		name, text, _ := strings.Cut(word, "=")
		p[name], err = strconv.ParseUint(text, 10, 63)
		if err != nil {
			return "", nil, fmt.Errorf("parse %q: want name=number", word)
		}
	}
	return words[0], p, nil
}

func (m *machine) obey(order string) {
	verb, p, err := parse(order)
	if err == nil {
		err = m.do(verb, p)
	}
	if err != nil {
		m.console.say("error %s: %v", strings.TrimSpace(order), err)
	}
}

func (m *machine) do(verb string, p params) error {
	switch verb {
	case "":
		return nil
	case "listen":
		return m.listen(p)
	case "ping":
		m.console.say("pong")
		return nil
	case "wait":
		m.console.say("waited last=%d", m.endLoad(false))
		return nil
	case "pause":
		m.console.say("paused last=%d", m.endLoad(true))
		return nil
	case "poweroff":
		m.endLoad(true)
		m.console.say("bye")
		poweroff()
	}
	if m.load != nil {
		return fmt.Errorf("a load is running: pause or wait first")
	}
	if len(m.volumes) == 0 {
		return fmt.Errorf("no disk")
	}
	switch verb {
	case "stamp":
		return m.startLoad(p)
	case "files":
		return m.startFiles(p)
	case "verify":
		return m.verify(p)
	case "attack":
		return m.attack(p)
	case "open":
		return m.open(p)
	case "system":
		return m.system()
	case "workload":
		return m.workload(p)
	}
	return fmt.Errorf("unknown order")
}

// slots is how many slots an order works on: every volume has them.
func (m *machine) slots(p params) (uint64, error) {
	fit := uint64(m.volumes[0].bytes)
	for _, d := range m.volumes {
		fit = min(fit, uint64(d.bytes))
	}
	fit /= stamp.Size
	slots := p.get("slots", min(defaultSlots, fit))
	if slots == 0 || slots > fit {
		return 0, fmt.Errorf("%d slots, the disks hold %d", slots, fit)
	}
	return slots, nil
}

// verify prints what lies on each volume, and the sums; max is the highest number
// that every volume has reached.
func (m *machine) verify(p params) error {
	slots, err := m.slots(p)
	if err != nil {
		return err
	}
	reports, err := m.scan(slots)
	if err != nil {
		return err
	}
	var sum struct{ count, torn, foreign, missing uint64 }
	reached := reports[0].Max
	for i, r := range reports {
		missing := max(r.Missing(p.get("upto", 0)), r.Missing(r.Max))
		m.console.say("volume %d %v missing=%d", i, r, missing)
		sum.count += r.Count
		sum.torn += r.Torn
		sum.foreign += r.Foreign
		sum.missing += missing
		reached = min(reached, r.Max)
	}
	m.console.say("verified max=%d count=%d torn=%d foreign=%d missing=%d",
		reached, sum.count, sum.torn, sum.foreign, sum.missing)
	return nil
}

// open takes the disks that there are now for those from the boot, and writes to each
// the stamps of volume 0 that it does not have.
func (m *machine) open(p params) error {
	for _, d := range m.volumes {
		d.close()
	}
	var err error
	if m.volumes, err = openDisks(); err != nil {
		return err
	}
	slots, err := m.slots(p)
	if err != nil {
		return err
	}
	reports, err := m.scan(slots)
	if err != nil {
		return err
	}
	first := reports[0]
	for i, r := range reports {
		for k := max(r.Max+1, first.Max-min(first.Max, slots)+1); k <= first.Max; k++ {
			s := stamp.Stamp{Number: k, Volume: uint32(i), Writer: first.Last.Writer, Time: time.Now()}
			if err := m.volumes[i].write(s, slots); err != nil {
				return fmt.Errorf("fill volume %d: %w", i, err)
			}
		}
	}
	m.console.say("opened volumes=%d", len(m.volumes))
	return nil
}

func (m *machine) scan(slots uint64) ([]stamp.Report, error) {
	var reports []stamp.Report
	for i, d := range m.volumes {
		r, err := stamp.Scan(d, uint32(i), slots)
		if err != nil {
			return nil, err
		}
		reports = append(reports, r)
	}
	return reports, nil
}

// attack overwrites a range of every volume with pseudo-random bytes, in whole
// stamps' lengths; without a range, all that the default slots hold.
func (m *machine) attack(p params) error {
	slots, err := m.slots(params{})
	if err != nil {
		return err
	}
	offset, length := p.get("offset", 0), p.get("length", slots*stamp.Size)
	if offset%stamp.Size != 0 || length%stamp.Size != 0 {
		return fmt.Errorf("offset and length are multiples of %d", stamp.Size)
	}
	var seed [32]byte
	for i, d := range m.volumes {
		seed[0], seed[1] = byte(p.get("seed", 0)), byte(i)
		random := rand.NewChaCha8(seed)
		for done := uint64(0); done < length; {
			part := d.buf[:min(length-done, bufferBytes)]
			if _, err := random.Read(part); err != nil {
				return err
			}
			if _, err := d.file.WriteAt(part, int64(offset+done)); err != nil {
				return err
			}
			done += uint64(len(part))
		}
	}
	m.console.say("attacked bytes=%d", length*uint64(len(m.volumes)))
	return nil
}
