package archivetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/novacron/afterimage/journal/archive"
)

// ErrBroken is what a Memory that was told to fail returns.
var ErrBroken = errors.New("the store is broken")

// Memory is an archive.Store in memory. The zero Memory is empty and works.
type Memory struct {
	mu      sync.Mutex // guards what follows
	objects map[string][]byte
	failAt  int // calls until one fails; 0: none does
}

var _ archive.Store = (*Memory)(nil)

// FailAt makes the nth call from now return ErrBroken; 0 takes that back.
func (m *Memory) FailAt(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failAt = n
}

// begin checks a call; m.mu is held.
func (m *Memory) begin(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if m.failAt > 0 {
		if m.failAt--; m.failAt == 0 {
			return ErrBroken
		}
	}
	return nil
}

// Put implements archive.Store.
func (m *Memory) Put(ctx context.Context, name string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.begin(ctx), archive.CheckName(name)); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	if m.objects == nil {
		m.objects = make(map[string][]byte)
	}
	m.objects[name] = slices.Clone(data)
	return nil
}

// Get implements archive.Store.
func (m *Memory) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.begin(ctx), archive.CheckName(name)); err != nil {
		return nil, fmt.Errorf("get: %w", err)
	}
	b, ok := m.objects[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("get %s: %w", name, archive.ErrNotFound)
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("get %s: %w", name, archive.ErrTooLarge)
	}
	return append([]byte{}, b...), nil
}

// List implements archive.Store.
func (m *Memory) List(ctx context.Context, prefix string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.begin(ctx); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	var names []string
	for name := range m.objects {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Delete implements archive.Store.
func (m *Memory) Delete(ctx context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := errors.Join(m.begin(ctx), archive.CheckName(name)); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	delete(m.objects, name)
	return nil
}
