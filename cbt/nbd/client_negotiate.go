package nbd

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
)

// Bounds on what a server may say in the handshake.
const (
	maxOptReplyBytes = 64 << 10
	maxOptReplies    = 1024 // to one option
)

// clientHaggler is the client's side of the handshake.
type clientHaggler struct {
	w    io.Writer
	r    *bufio.Reader
	opts DialOptions
	meta map[string]uint32

	noZeroes bool
	info     Info
}

func (h *clientHaggler) run() (Info, error) {
	if len(h.opts.Export) > maxStringBytes {
		return Info{}, fmt.Errorf("export name of %d bytes: %w", len(h.opts.Export), EINVAL)
	}
	if err := h.greet(); err != nil {
		return Info{}, err
	}
	h.info.MinBlock, h.info.PreferredBlock, h.info.MaxPayload = 1, preferredBlockBytes, maxPayloadBytes
	if !h.opts.NoStructuredReplies {
		if err := h.structured(); err != nil {
			return Info{}, err
		}
	}
	if h.info.Structured && len(h.opts.MetaContexts) > 0 {
		if err := h.metaContexts(); err != nil {
			return Info{}, err
		}
	}
	if err := h.open(); err != nil {
		return Info{}, err
	}
	return h.info, nil
}

func (h *clientHaggler) greet() error {
	var b [greetingBytes]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	if m := be.Uint64(b[0:]); m != magicGreeting {
		return violation("greeting %#x", m)
	}
	if m := be.Uint64(b[8:]); m == magicOldstyle {
		return fmt.Errorf("oldstyle negotiation: %w", ErrUnsupported)
	} else if m != magicOption {
		return violation("greeting %#x", m)
	}
	flags := be.Uint16(b[16:])
	if flags&handshakeFixedNewstyle == 0 {
		return fmt.Errorf("server does not speak fixed newstyle: %w", ErrUnsupported)
	}
	h.noZeroes = flags&handshakeNoZeroes != 0
	answer := uint32(handshakeFixedNewstyle)
	if h.noZeroes {
		answer |= handshakeNoZeroes
	}
	return h.send(be.AppendUint32(nil, answer))
}

func (h *clientHaggler) send(b []byte) error {
	if _, err := h.w.Write(b); err != nil {
		return fmt.Errorf("write option: %w", err)
	}
	return nil
}

// ask sends an option and calls each for every reply but the last, which it
// returns: ACK, or an error with the server's words.
func (h *clientHaggler) ask(code uint32, data []byte, each func(kind uint32, data []byte) error) (uint32, string, error) {
	if err := h.send(appendOption(nil, code, data)); err != nil {
		return 0, "", err
	}
	for range maxOptReplies {
		kind, data, err := h.reply(code)
		if err != nil {
			return 0, "", err
		}
		if kind&repErrBit != 0 {
			return kind, string(data[:min(len(data), maxStringBytes)]), nil
		}
		if kind == repAck {
			return kind, "", nil
		}
		if each == nil {
			return 0, "", violation("reply %d to option %d", kind, code)
		}
		if err := each(kind, data); err != nil {
			return 0, "", err
		}
	}
	return 0, "", violation("more than %d replies to option %d", maxOptReplies, code)
}

func (h *clientHaggler) reply(code uint32) (kind uint32, data []byte, err error) {
	var head [optReplyBytes]byte
	if _, err := io.ReadFull(h.r, head[:]); err != nil {
		return 0, nil, fmt.Errorf("read option reply: %w", err)
	}
	if m := be.Uint64(head[0:]); m != magicOptReply {
		return 0, nil, violation("option reply magic %#x", m)
	}
	if o := be.Uint32(head[8:]); o != code {
		return 0, nil, violation("reply to option %d instead of %d", o, code)
	}
	n := be.Uint32(head[16:])
	if n > maxOptReplyBytes {
		return 0, nil, violation("option reply of %d bytes", n)
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(h.r, data); err != nil {
		return 0, nil, fmt.Errorf("read option reply: %w", err)
	}
	return be.Uint32(head[12:]), data, nil
}

func (h *clientHaggler) structured() error {
	kind, _, err := h.ask(optStructuredReply, nil, nil)
	h.info.Structured = err == nil && kind == repAck
	return err
}

func (h *clientHaggler) metaContexts() error {
	data := appendString(nil, h.opts.Export)
	data = be.AppendUint32(data, uint32(len(h.opts.MetaContexts)))
	for _, m := range h.opts.MetaContexts {
		data = appendString(data, m)
	}
	kind, _, err := h.ask(optSetMetaContext, data, func(kind uint32, data []byte) error {
		c := cut(data)
		id := c.u32()
		if kind != repMetaContext || !c.ok {
			return violation("reply %d to the meta contexts", kind)
		}
		// A server may offer what nobody asked for; it will not be used.
		if name := string(c.b); slices.Contains(h.opts.MetaContexts, name) {
			h.meta[name] = id
		}
		return nil
	})
	if err == nil && kind != repAck {
		clear(h.meta)
	}
	return err
}

// open ends the haggling with GO, or EXPORT_NAME where GO is not known.
func (h *clientHaggler) open() error {
	data := appendString(nil, h.opts.Export)
	data = be.AppendUint16(data, 1)
	data = be.AppendUint16(data, infoBlockSize)
	told := false
	kind, text, err := h.ask(optGo, data, func(kind uint32, data []byte) error {
		if kind != repInfo {
			return violation("reply %d to GO", kind)
		}
		return h.learn(data, &told)
	})
	switch {
	case err != nil:
		return err
	case kind == repAck && !told:
		return violation("GO without the export's size")
	case kind == repAck:
		return nil
	case kind == repErrUnsup:
		return h.exportName()
	case kind == repErrUnknown:
		return fmt.Errorf("%w: server says %q", ErrUnknownExport, text)
	}
	return fmt.Errorf("%w: error %d, server says %q", ErrRefused, kind&^repErrBit, text)
}

// learn takes one INFO reply.
func (h *clientHaggler) learn(data []byte, told *bool) error {
	c := cut(data)
	switch c.u16() {
	case infoExport:
		size, flags := c.u64(), c.u16()
		if !c.done() {
			return violation("malformed export information")
		}
		*told = true
		return h.setExport(size, flags)
	case infoBlockSize:
		least, preferred, most := c.u32(), c.u32(), c.u32()
		if !c.done() || least == 0 || bits.OnesCount32(least) != 1 || least > 64<<10 || preferred < least || most < least {
			return violation("block sizes %d, %d, %d", least, preferred, most)
		}
		h.info.MinBlock, h.info.PreferredBlock = int64(least), int64(preferred)
		h.info.MaxPayload = min(int64(most), maxPayloadBytes) &^ (int64(least) - 1)
	}
	return nil
}

func (h *clientHaggler) exportName() error {
	if err := h.send(appendOption(nil, optExportName, []byte(h.opts.Export))); err != nil {
		return err
	}
	n := 10
	if !h.noZeroes {
		n += exportPadBytes
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(h.r, b); err != nil {
		return fmt.Errorf("%w: server hung up on the export's name: %w", ErrUnknownExport, err)
	}
	return h.setExport(be.Uint64(b), be.Uint16(b[8:]))
}

func (h *clientHaggler) setExport(size uint64, flags uint16) error {
	if size > math.MaxInt64 {
		return violation("export of %d bytes", size)
	}
	if flags&flagHasFlags == 0 {
		flags = 0
	}
	h.info.Size, h.info.Flags = int64(size), flags
	h.info.ReadOnly = flags&flagReadOnly != 0
	h.info.CanFlush = flags&flagSendFlush != 0
	h.info.CanFUA = flags&flagSendFUA != 0
	h.info.CanTrim = flags&flagSendTrim != 0
	h.info.CanZero = flags&flagSendWriteZeroes != 0
	h.info.CanMultiConn = flags&flagCanMultiConn != 0
	return nil
}
