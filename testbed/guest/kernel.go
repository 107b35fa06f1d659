package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// fetchKernel returns a directory of the cache that holds vmlinuz and the modules
// as *.ko, fetching Debian's package when there is none. The caller holds the lock.
func fetchKernel(ctx context.Context, cache string) (string, error) {
	have, err := filepath.Glob(filepath.Join(cache, "kernel-*"))
	if err != nil {
		return "", err
	}
	have = slices.DeleteFunc(have, lacks)
	if len(have) > 0 {
		return have[len(have)-1], nil
	}
	scratch, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	pkg, err := kernelVersion(ctx)
	if err != nil {
		return "", err
	}
	if _, err := output(ctx, scratch, "apt-get", "download", "-q", pkg); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoKernel, err)
	}
	debs, err := filepath.Glob(filepath.Join(scratch, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("%w: apt-get download left %d packages", ErrNoKernel, len(debs))
	}
	tree := filepath.Join(scratch, "tree")
	if _, err := output(ctx, scratch, "dpkg", "-x", debs[0], tree); err != nil {
		return "", err
	}
	picked := filepath.Join(scratch, "picked")
	if err := pick(ctx, tree, picked); err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "kernel-"+strings.TrimPrefix(pkg, "linux-image-")+"-net")
	return dir, os.Rename(picked, dir)
}

// lacks reports whether a kernel was picked when fewer modules were wanted.
func lacks(dir string) bool {
	for _, m := range slices.Concat(modules, further) {
		if _, err := os.Stat(filepath.Join(dir, m+".ko")); err != nil {
			return true
		}
	}
	return false
}

// kernelVersion is the package that kernelPackage stands for.
func kernelVersion(ctx context.Context) (string, error) {
	out, err := output(ctx, "", "apt-cache", "depends", "--important", kernelPackage)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoKernel, err)
	}
	for line := range strings.Lines(out) {
		if pkg, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			return "linux-image-" + pkg, nil
		}
	}
	return "", fmt.Errorf("%w: %s depends on no kernel", ErrNoKernel, kernelPackage)
}

// pick copies the kernel and the wanted modules out of an unpacked package;
// modules that are packed with xz are unpacked.
func pick(ctx context.Context, tree, to string) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	found := map[string]string{}
	err := filepath.WalkDir(tree, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found[strings.TrimSuffix(d.Name(), ".xz")] = path
			if strings.HasPrefix(d.Name(), "vmlinuz-") {
				found["vmlinuz"] = path
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	want := []string{"vmlinuz"}
	for _, m := range slices.Concat(modules, further) {
		want = append(want, m+".ko")
	}
	for _, name := range want {
		path, ok := found[name]
		if !ok {
			return fmt.Errorf("%w: %s is not in the package", ErrNoKernel, name)
		}
		var data []byte
		if strings.HasSuffix(path, ".xz") {
			text, err := output(ctx, "", "xz", "-dc", path)
			if err != nil {
				return err
			}
			data = []byte(text)
		} else if data, err = os.ReadFile(path); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
