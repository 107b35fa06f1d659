package libvirt

import (
	"encoding/xml"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var edit = Edit{
	Name: "web-drill & co", UUID: "11111111-2222-3333-4444-555555555555", Isolate: true,
	Disks: map[string]Export{"vda": {"/run/a'<b>/s", "view/1&2"}, "sdb": {"/run/s", "b"}, "vdc": {"/run/s", "c"}},
}

func TestRewriteMatchesGolden(t *testing.T) {
	in, err := os.ReadFile("testdata/domain.xml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Rewrite(string(in), edit)
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "rewritten.xml")
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
		t.Errorf("got:\n%s", got)
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
		"<devices>\n<interface  type=\"bridge\"/></devices><qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>\n"
	got, err := Rewrite(text, Edit{})
	if err != nil || got != text {
		t.Errorf("%v\n%q", err, got)
	}
	got, err = Rewrite(text, Edit{UUID: "u", Isolate: true})
	const want = "<?xml version='1.0'?>\n<!-- a -->\n<domain xmlns:qemu=\"u\" type='kvm'>\r\n <name>x</name>\r\n <uuid>u</uuid><description><![CDATA[<a>&]]></description>" +
		"<devices>\n<interface type='user'><link state='down'/></interface></devices><qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>\n"
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
