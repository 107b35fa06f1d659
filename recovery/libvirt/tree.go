package libvirt

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// element is one element of a document by its place in the bytes:
//
//	<name attr='value'>  children  </name>
//	^from              ^inner      ^outer  ^to     (<name/>: inner == outer == to)
type element struct {
	name        string // with its prefix: qemu:arg
	attrs       []xml.Attr
	children    []*element
	from, inner int64
	outer, to   int64
	whitespace  string // before from, for what stands beside it
}

// parse reads a document's elements. Names keep their prefixes and nothing is
// resolved, so what is not edited keeps its bytes.
func parse(text []byte) (*element, error) {
	d := xml.NewDecoder(bytes.NewReader(text))
	var root *element
	var open []*element
	for {
		from := d.InputOffset()
		tok, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDefinition, err)
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			e := &element{name: qualified(tok.Name), attrs: slices.Clone(tok.Attr), from: from, inner: d.InputOffset()}
			e.whitespace = trailingSpace(text[:from])
			if len(open) > 0 {
				last := open[len(open)-1]
				last.children = append(last.children, e)
			} else if root != nil {
				return nil, fmt.Errorf("%w: more than one element at the top", ErrDefinition)
			} else {
				root = e
			}
			open = append(open, e)
		case xml.EndElement:
			if len(open) == 0 || open[len(open)-1].name != qualified(tok.Name) {
				return nil, fmt.Errorf("%w: </%s> closes nothing", ErrDefinition, qualified(tok.Name))
			}
			e := open[len(open)-1]
			e.outer, e.to = from, d.InputOffset()
			open = open[:len(open)-1]
		}
	}
	if root == nil || len(open) > 0 {
		return nil, fmt.Errorf("%w: no element, or an open one", ErrDefinition)
	}
	return root, nil
}

func qualified(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

// trailingSpace is the line break and indent that b ends with.
func trailingSpace(b []byte) string {
	return string(b[len(bytes.TrimRight(b, " \t\r\n")):])
}

func (e *element) child(name string) *element {
	for _, c := range e.children {
		if c.name == name {
			return c
		}
	}
	return nil
}

func (e *element) attr(name string) string {
	for _, a := range e.attrs {
		if qualified(a.Name) == name {
			return a.Value
		}
	}
	return ""
}

// empty reports that e is <name/>.
func (e *element) empty() bool { return e.inner == e.outer && e.outer == e.to }

// startTag is e's start tag with attributes set (or, if "", removed); the ones
// that stay keep their order.
func (e *element) startTag(set ...[2]string) string {
	attrs := slices.Clone(e.attrs)
	for _, s := range set {
		at := slices.IndexFunc(attrs, func(a xml.Attr) bool { return qualified(a.Name) == s[0] })
		switch {
		case s[1] == "" && at >= 0:
			attrs = slices.Delete(attrs, at, at+1)
		case at >= 0:
			attrs[at].Value = s[1]
		case s[1] != "":
			attrs = append(attrs, xml.Attr{Name: xml.Name{Local: s[0]}, Value: s[1]})
		}
	}
	var b strings.Builder
	b.WriteString("<" + e.name)
	for _, a := range attrs {
		fmt.Fprintf(&b, " %s='%s'", qualified(a.Name), escape(a.Value))
	}
	if e.empty() {
		b.WriteString("/")
	}
	return b.String() + ">"
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}

// splice is bytes [from,to) of a document replaced by text.
type splice struct {
	from, to int64
	text     string
}

func (e *element) replace(text string) splice { return splice{e.from, e.to, text} }

// remove takes e away with the space before it.
func (e *element) remove() splice {
	return splice{e.from - int64(len(e.whitespace)), e.to, ""}
}

// apply makes all splices, which must not overlap.
func apply(text []byte, ss []splice) string {
	slices.SortStableFunc(ss, func(a, b splice) int { return cmp.Compare(a.from, b.from) })
	var out strings.Builder
	at := int64(0)
	for _, s := range ss {
		out.Write(text[at:s.from])
		out.WriteString(s.text)
		at = s.to
	}
	out.Write(text[at:])
	return out.String()
}

// unescape is the text that b stands for, without the space around it.
func unescape(b []byte) string {
	var s string
	if err := xml.Unmarshal(slices.Concat([]byte("<t>"), b, []byte("</t>")), &s); err != nil {
		return string(b)
	}
	return strings.TrimSpace(s)
}
