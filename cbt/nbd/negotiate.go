package nbd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// An option's data may be as long as a few names; the rest of a longer one is
// skipped up to skipOptionBytes, beyond which the client is sent away.
const (
	maxOptionBytes  = 64 << 10
	skipOptionBytes = 1 << 20
	maxMetaQueries  = 64
)

// negotiated is the outcome of a handshake.
type negotiated struct {
	export     *Export
	structured bool
	allocation bool
}

func (n negotiated) terms() terms {
	return terms{
		size:       n.export.Size,
		flags:      n.export.transmissionFlags(n.structured),
		structured: n.structured,
		allocation: n.allocation,
	}
}

// close releases an export that will not be served.
func (n negotiated) close() {
	if n.export != nil && n.export.Release != nil {
		n.export.Release()
	}
}

// haggler is the server's side of the handshake of one connection (proto.md,
// "Fixed newstyle negotiation"). Nothing that it learns outlives the
// connection, and STARTTLS is refused, so no state can be carried from plain
// text into an encrypted phase.
type haggler struct {
	srv  *Server
	ctx  context.Context
	w    io.Writer
	r    *bufio.Reader
	peer string

	noZeroes   bool
	structured bool
	metaExport string // export for which base:allocation was granted
	allocation bool
}

func (h *haggler) run() (negotiated, error) {
	if err := h.greet(); err != nil {
		return negotiated{}, err
	}
	for range h.srv.opts.MaxOptions {
		opt, tooBig, err := h.readOption()
		if err != nil {
			return negotiated{}, err
		}
		n, done, err := h.option(opt, tooBig)
		if done || err != nil {
			return n, err
		}
	}
	return negotiated{}, violation("more than %d options", h.srv.opts.MaxOptions)
}

func (h *haggler) greet() error {
	g := be.AppendUint64(nil, magicGreeting)
	g = be.AppendUint64(g, magicOption)
	g = be.AppendUint16(g, handshakeFixedNewstyle|handshakeNoZeroes)
	if _, err := h.w.Write(g); err != nil {
		return fmt.Errorf("write greeting: %w", err)
	}
	var b [4]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return fmt.Errorf("read client flags: %w", err)
	}
	flags := be.Uint32(b[:])
	if flags&^(handshakeFixedNewstyle|handshakeNoZeroes) != 0 {
		return violation("unknown client flags %#x", flags)
	}
	if flags&handshakeFixedNewstyle == 0 {
		return violation("client does not speak fixed newstyle")
	}
	h.noZeroes = flags&handshakeNoZeroes != 0
	return nil
}

func (h *haggler) readOption() (opt option, tooBig bool, err error) {
	var head [optionBytes]byte
	if _, err := io.ReadFull(h.r, head[:]); err != nil {
		return opt, false, fmt.Errorf("read option: %w", err)
	}
	if m := be.Uint64(head[0:]); m != magicOption {
		return opt, false, violation("option magic %#x", m)
	}
	opt.code = be.Uint32(head[8:])
	length := be.Uint32(head[12:])
	if length > skipOptionBytes {
		return opt, false, violation("option %d of %d bytes", opt.code, length)
	}
	if length > maxOptionBytes {
		return opt, true, discard(h.r, int64(length))
	}
	opt.data = make([]byte, length)
	if _, err := io.ReadFull(h.r, opt.data); err != nil {
		return opt, false, fmt.Errorf("read data of option %d: %w", opt.code, err)
	}
	return opt, false, nil
}

func (h *haggler) option(opt option, tooBig bool) (n negotiated, done bool, err error) {
	if tooBig {
		if opt.code == optExportName {
			return n, true, violation("export name too long")
		}
		return n, false, h.reply(opt, repErrTooBig, "option is too long")
	}
	switch opt.code {
	case optExportName:
		n, err := h.exportName(opt)
		return n, true, err
	case optAbort:
		h.reply(opt, repAck, "") // the client may be gone already, and may
		return n, true, errAborted
	case optList:
		return n, false, h.list(opt)
	case optInfo, optGo:
		return h.info(opt)
	case optStructuredReply:
		if len(opt.data) != 0 {
			return n, false, h.reply(opt, repErrInvalid, "no data expected")
		}
		h.structured = true
		return n, false, h.reply(opt, repAck, "")
	case optListMetaContext, optSetMetaContext:
		return n, false, h.metaContext(opt)
	case optStartTLS:
		return n, false, h.reply(opt, repErrUnsup, "TLS is not offered here")
	}
	return n, false, h.reply(opt, repErrUnsup, "unknown option")
}

// reply answers opt; text goes with errors.
func (h *haggler) reply(opt option, kind uint32, text string) error {
	return h.send(appendOptReply(nil, opt.code, kind, []byte(text)))
}

func (h *haggler) send(b []byte) error {
	if _, err := h.w.Write(b); err != nil {
		return fmt.Errorf("write option reply: %w", err)
	}
	return nil
}

func (h *haggler) lookup(name string) (*Export, error) {
	if strings.ContainsRune(name, 0) {
		return nil, fmt.Errorf("%w: name holds NUL", ErrUnknownExport)
	}
	x, err := h.srv.opts.Lookup(h.ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open export %q: %w", name, err)
	}
	if x.Size < 0 {
		return nil, fmt.Errorf("open export %q: size %d", name, x.Size)
	}
	return x, nil
}

// settle is what the transmission phase starts with when x is chosen. A meta
// context counts only for the export that it was negotiated for.
func (h *haggler) settle(name string, x *Export) negotiated {
	return negotiated{export: x, structured: h.structured, allocation: h.allocation && h.metaExport == name}
}

// exportName has no reply but the export itself: refusing means hanging up.
func (h *haggler) exportName(opt option) (negotiated, error) {
	if len(opt.data) > maxStringBytes {
		return negotiated{}, violation("export name of %d bytes", len(opt.data))
	}
	name := string(opt.data)
	x, err := h.lookup(name)
	if err != nil {
		return negotiated{}, err
	}
	n := h.settle(name, x)
	b := be.AppendUint64(nil, uint64(x.Size))
	b = be.AppendUint16(b, x.transmissionFlags(h.structured))
	if !h.noZeroes {
		b = append(b, make([]byte, exportPadBytes)...)
	}
	return n, h.send(b)
}

func (h *haggler) list(opt option) error {
	if len(opt.data) != 0 {
		return h.reply(opt, repErrInvalid, "no data expected")
	}
	if h.srv.opts.List == nil {
		return h.reply(opt, repErrPolicy, "exports are not listed here")
	}
	var b []byte
	for _, name := range h.srv.opts.List() {
		b = appendOptReply(b, opt.code, repServer, appendString(nil, name))
	}
	return h.send(appendOptReply(b, opt.code, repAck, nil))
}

// info answers INFO and GO; only GO ends the haggling.
func (h *haggler) info(opt option) (n negotiated, done bool, err error) {
	c := cut(opt.data)
	name := c.str()
	wanted := make(map[uint16]bool)
	for range c.u16() {
		wanted[c.u16()] = true
	}
	if !c.done() {
		return n, false, h.reply(opt, repErrInvalid, "malformed name or information requests")
	}
	x, err := h.lookup(name)
	if err != nil {
		kind := uint32(repErrPolicy)
		if errors.Is(err, ErrUnknownExport) {
			kind = repErrUnknown
		}
		h.srv.opts.Log.Warn("nbd export refused", "remote", h.peer, "export", name, "reason", err)
		return n, false, h.reply(opt, kind, err.Error())
	}
	n = h.settle(name, x)
	err = h.send(h.describe(opt, x, wanted))
	if opt.code == optInfo || err != nil {
		n.close()
		return negotiated{}, false, err
	}
	return n, true, nil
}

func (h *haggler) describe(opt option, x *Export, wanted map[uint16]bool) []byte {
	info := func(kind uint16) []byte { return be.AppendUint16(nil, kind) }
	export := be.AppendUint64(info(infoExport), uint64(x.Size))
	export = be.AppendUint16(export, x.transmissionFlags(h.structured))
	b := appendOptReply(nil, opt.code, repInfo, export)
	blocks := info(infoBlockSize)
	for _, v := range []uint32{minBlockBytes, preferredBlockBytes, maxPayloadBytes} {
		blocks = be.AppendUint32(blocks, v)
	}
	b = appendOptReply(b, opt.code, repInfo, blocks)
	if wanted[infoName] {
		b = appendOptReply(b, opt.code, repInfo, append(info(infoName), x.Name...))
	}
	if wanted[infoDescription] && x.Description != "" {
		b = appendOptReply(b, opt.code, repInfo, append(info(infoDescription), x.Description...))
	}
	return appendOptReply(b, opt.code, repAck, nil)
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT. A failed SET
// leaves nothing selected.
func (h *haggler) metaContext(opt option) error {
	set := opt.code == optSetMetaContext
	if set {
		h.allocation = false
	}
	if !h.structured {
		return h.reply(opt, repErrInvalid, "structured replies come first")
	}
	c := cut(opt.data)
	name := c.str()
	queries := c.u32()
	if queries > maxMetaQueries {
		return h.reply(opt, repErrTooBig, "too many queries")
	}
	match := queries == 0 && !set
	for range queries {
		q := c.str()
		match = match || q == ContextAllocation || !set && q == "base:"
	}
	if !c.done() {
		return h.reply(opt, repErrInvalid, "malformed name or queries")
	}
	var b []byte
	if match {
		id := uint32(0)
		if set {
			h.allocation, h.metaExport = true, name
			id = allocationContextID
		}
		b = appendOptReply(b, opt.code, repMetaContext, append(be.AppendUint32(nil, id), ContextAllocation...))
	}
	return h.send(appendOptReply(b, opt.code, repAck, nil))
}
