package cbttest

import (
	"encoding/json"
	"sync"

	"github.com/novacron/afterimage/cbt"
)

// Memory is a cbt.Memory that outlives trackers, not processes.
type Memory struct {
	mu     sync.Mutex // guards values
	values map[string][]byte
}

var _ cbt.Memory = (*Memory)(nil)

// Remember implements cbt.Memory.
func (m *Memory) Remember(key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.values == nil {
		m.values = make(map[string][]byte)
	}
	m.values[key] = b
	return nil
}

// Recall implements cbt.Memory.
func (m *Memory) Recall(key string, v any) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.values[key]
	if !ok {
		return false, nil
	}
	return true, json.Unmarshal(b, v)
}
