package recovery

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// machineFile is a machine's identity, durable before QEMU is started.
type machineFile struct {
	Name string   `json:"name"`
	UUID string   `json:"uuid"`
	Argv []string `json:"argv"`
}

func readIdentity(dir string) (id machineFile, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "machine.json"))
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(b, &id); err != nil {
		return id, fmt.Errorf("read machine.json: %w", err)
	}
	return id, nil
}

// identity is the machine's, the one given before if it had one.
func (m Machine) identity() (machineFile, error) {
	id, err := readIdentity(m.Dir)
	if err != nil {
		return id, err
	}
	if id.Name != m.Name {
		return id, fmt.Errorf("%w: %s in %s", ErrWrongMachine, id.Name, m.Dir)
	}
	return id, nil
}

// Resident is the name of the machine whose identity lies in a directory; "": none's.
func Resident(dir string) (string, error) {
	id, err := readIdentity(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return id.Name, err
}

// prepare makes directory and identity.
func (m Machine) prepare(uris map[string]string) (machineFile, error) {
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return machineFile{}, err
	}
	id, err := m.identity()
	if errors.Is(err, fs.ErrNotExist) {
		id, err = machineFile{Name: m.Name, UUID: newUUID()}, nil
	}
	if err != nil {
		return id, err
	}
	for i, a := range m.Args {
		if a == "-uuid" && i+1 < len(m.Args) {
			id.UUID = m.Args[i+1]
		}
	}
	if id.Argv, err = m.Argv(uris, id.UUID); err != nil {
		return id, err
	}
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return id, err
	}
	return id, writeFile(filepath.Join(m.Dir, "machine.json"), append(b, '\n'))
}

// newUUID is RFC 9562, version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails on Linux; the runtime aborts first
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// writeFile replaces a file durably.
func writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}
