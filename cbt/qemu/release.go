package qemu

import (
	"context"
	"fmt"

	"github.com/novacron/afterimage/cbt/qmp"
)

// release deletes the nodes of a disk that was taken from its machine: who took it
// could not, while our mirror used them, and an image that QEMU holds open cannot be
// plugged again. What anything else uses, QEMU refuses to delete.
func (w *mirror) release(ctx context.Context) error {
	chain, err := w.machine.chain(ctx, w.node.Name)
	if err != nil {
		return err
	}
	for _, name := range chain {
		if err := w.machine.deleteNode(ctx, name); err != nil && !qmp.IsRefused(err) {
			return err
		}
	}
	return nil
}

// chain is a node and all beneath it, parents before children.
func (m *machine) chain(ctx context.Context, node string) ([]string, error) {
	var graph struct {
		Nodes []struct {
			ID   uint64 `json:"id"`
			Name string `json:"name"`
			Type string `json:"type"`
		} `json:"nodes"`
		Edges []struct {
			Parent uint64 `json:"parent"`
			Child  uint64 `json:"child"`
		} `json:"edges"`
	}
	if err := m.do(ctx, "x-debug-query-block-graph", nil, &graph); err != nil {
		return nil, fmt.Errorf("ask for the block graph: %w", err)
	}
	names := make(map[uint64]string)
	var rest []uint64
	for _, n := range graph.Nodes {
		if n.Type != "block-driver" {
			continue
		}
		names[n.ID] = n.Name
		if n.Name == node {
			rest = append(rest, n.ID)
		}
	}
	var out []string
	for seen := make(map[uint64]bool); len(rest) > 0; rest = rest[1:] {
		if seen[rest[0]] || names[rest[0]] == "" {
			continue
		}
		seen[rest[0]] = true
		out = append(out, names[rest[0]])
		for _, e := range graph.Edges {
			if e.Parent == rest[0] {
				rest = append(rest, e.Child)
			}
		}
	}
	return out, nil
}
