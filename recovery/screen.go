package recovery

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"path/filepath"

	"github.com/novacron/afterimage/cbt/qmp"
)

// screendump has QEMU write its first screen to a file, which is read and removed
// (QEMU, qapi/ui.json, "screendump").
func (m Machine) screendump(ctx context.Context) ([]byte, error) {
	c, err := qmp.Dial(ctx, m.withDefaults().qmp(), qmp.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	path := filepath.Join(m.Dir, "screen.ppm")
	defer os.Remove(path)
	err = c.Execute(ctx, "screendump", map[string]any{"filename": path}, nil)
	var refused *qmp.Error
	if errors.As(err, &refused) { // "There is no console to take a screendump from"
		return nil, fmt.Errorf("%w: %s", ErrNoScreen, refused.Desc)
	}
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return PNG(f)
}

// maxScreen bounds a picture's sides: it is drawn by a guest.
const maxScreen = 8192

// PNG makes one of a picture in netpbm's P6, which QEMU and libvirt give.
func PNG(r io.Reader) ([]byte, error) {
	in := bufio.NewReader(r)
	var width, height, depth int
	if _, err := fmt.Fscanf(in, "P6\n%d %d\n%d\n", &width, &height, &depth); err != nil {
		return nil, fmt.Errorf("read picture: %w", err)
	}
	if width <= 0 || height <= 0 || width > maxScreen || height > maxScreen || depth != 255 {
		return nil, fmt.Errorf("read picture: %d x %d of depth %d is not taken", width, height, depth)
	}
	picture := image.NewNRGBA(image.Rect(0, 0, width, height))
	line := make([]byte, 3*width)
	for y := range height {
		if _, err := io.ReadFull(in, line); err != nil {
			return nil, fmt.Errorf("read picture: line %d: %w", y, err)
		}
		for x := range width {
			picture.SetNRGBA(x, y, color.NRGBA{line[3*x], line[3*x+1], line[3*x+2], 255})
		}
	}
	var out bytes.Buffer
	if err := png.Encode(&out, picture); err != nil {
		return nil, fmt.Errorf("write picture: %w", err)
	}
	return out.Bytes(), nil
}
