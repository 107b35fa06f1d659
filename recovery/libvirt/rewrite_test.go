package libvirt

import (
	"encoding/xml"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var edit = Edit{
	Name: "web & co", UUID: "11111111-2222-3333-4444-555555555555",
	Disks:    map[string]Export{"vda": {"/run/a'<b>/s", "view/1&2"}, "sdb": {"/run/s", "b"}, "vdc": {"/run/s", "c"}},
	Networks: map[string]Network{"br0": {Network: "lan"}, "default": {Bridge: "br7"}}, MACs: map[string]string{"52:54:00:aa:bb:cd": "52:54:00:00:00:01"},
}

func TestRewriteMatchesGolden(t *testing.T) {
	text, err := os.ReadFile("testdata/domain.xml")
	if err != nil {
		t.Fatal(err)
	}
	matches(t, "moved.xml", string(text), edit)
	from, to, _ := strings.Cut(string(text), "  <qemu:commandline>")
	_, to, _ = strings.Cut(to, "</qemu:commandline>\n")
	drill := edit
	drill.Isolate, drill.Console = true, "/run/d/console.log"
	matches(t, "drill.xml", from+to, drill)
	drill.Private = "nowhere"
	matches(t, "private.xml", from+to, drill)
}

// What would let a drill reach out of its machine is refused, and its device named.
func TestADrillThatReachesOutIsRefused(t *testing.T) {
	for what, text := range map[string]string{
		"qemu:commandline": "<domain xmlns:qemu='u'><name>x</name><qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>",
		"hostdev":          "<domain><name>x</name><devices><hostdev mode='subsystem'/></devices></domain>",
		"filesystem":       "<domain><name>x</name><devices><filesystem type='mount'/></devices></domain>",
		"shmem":            "<domain><name>x</name><devices><shmem name='s'/></devices></domain>",
	} {
		if _, err := Rewrite(text, Edit{Isolate: true}); !errors.Is(err, ErrDefinition) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := Rewrite(text, Edit{}); err != nil {
			t.Errorf("%s of the machine itself: %v", what, err)
		}
	}
}

func matches(t *testing.T, name, in string, edit Edit) {
	t.Helper()
	got, err := Rewrite(in, edit)
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got:\n%s", name, got)
	}
	// The parser of encoding/xml, which resolves and checks, reads it back.
	var back struct {
		Name  string `xml:"name"`
		Disks []struct {
			Source struct {
				Name string `xml:"name,attr"`
				Host struct {
					Socket string `xml:"socket,attr"`
				} `xml:"host"`
			} `xml:"source"`
		} `xml:"devices>disk"`
	}
	if err := xml.Unmarshal([]byte(got), &back); err != nil {
		t.Fatal(err)
	}
	if s := back.Disks[0].Source; back.Name != edit.Name || s.Name != "view/1&2" || s.Host.Socket != "/run/a'<b>/s" {
		t.Errorf("read back %+v", back)
	}
}

func TestNothingAskedNothingChanged(t *testing.T) {
	const text = "<?xml version='1.0'?>\n<!-- a -->\n<domain xmlns:qemu=\"u\" type='kvm'>\r\n <name>x</name><description><![CDATA[<a>&]]></description>" +
		"<devices>\n<interface  type=\"bridge\"/></devices></domain>\n"
	got, err := Rewrite(text, Edit{})
	if err != nil || got != text {
		t.Errorf("%v\n%q", err, got)
	}
	got, err = Rewrite(text, Edit{UUID: "u", Isolate: true})
	const want = "<?xml version='1.0'?>\n<!-- a -->\n<domain xmlns:qemu=\"u\" type='kvm'>\r\n <name>x</name>\r\n <uuid>u</uuid><description><![CDATA[<a>&]]></description>" +
		"<devices>\n<interface type='user'><link state='down'/></interface></devices></domain>\n"
	if err != nil || got != want {
		t.Errorf("%v\n%q", err, got)
	}
}

func TestADiskWithoutAnExportIsAnError(t *testing.T) {
	const text = "<domain><name>x</name><devices><disk><target dev='vda'/></disk><disk device='cdrom'><target dev='sda'/></disk><disk device='lun'/></devices></domain>"
	_, err := Rewrite(text, Edit{Disks: map[string]Export{"vdb": {}, "": {}}})
	var bad *DisksError
	if !errors.As(err, &bad) || !errors.Is(err, ErrDisks) || !reflect.DeepEqual(bad.Missing, []string{"vda", ""}) || !reflect.DeepEqual(bad.Unused, []string{"", "vdb"}) {
		t.Errorf("%+v", err)
	}
}

func TestBadDefinitions(t *testing.T) {
	for _, text := range []string{
		"", "x", "<domain>", "<domain></name>", "<domain><name>x</domain></name>", "<domain/>", "<network><name>x</name></network>",
		"<domain><name>x</name></domain><domain/>", "<domain><name a=></name></domain>", "</domain>",
	} {
		if got, err := Rewrite(text, Edit{Name: "n"}); !errors.Is(err, ErrDefinition) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}

func FuzzRewrite(f *testing.F) {
	in, err := os.ReadFile("testdata/domain.xml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(in))
	f.Add("<domain><name/><devices><disk><driver><x/></driver><target dev='vda'/></disk><interface><a/></interface></devices></domain>")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Rewrite(text, Edit{Name: "n", UUID: "u", Isolate: true, Disks: map[string]Export{"vda": {"s", "e"}}})
		if err != nil {
			return
		}
		root, err := parse([]byte(got))
		if err != nil {
			t.Fatalf("%v\n%q\n%q", err, text, got)
		}
		if n := root.child("name"); unescape([]byte(got)[n.inner:n.outer]) != "n" {
			t.Fatalf("%q", got)
		}
	})
}
