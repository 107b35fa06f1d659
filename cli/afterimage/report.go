package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/novacron/afterimage/site"
	"github.com/novacron/afterimage/site/control"
	"github.com/novacron/afterimage/site/fault"
)

func (w *world) reportCommand() *cli.Command {
	return noun("report", "the evidence of drills and failovers",
		verb("list", "list reports and whether another site vouches for them", "", "", []string{"afterimage report list"}, nil, w.reportList),
		verb("export", "write one file that proves a report", "NAME", "The file holds the report, the site's ledger up to its end, and another site's word for it.",
			[]string{"afterimage report export default-web-drill-20261122-120000.000 --to web.evidence"},
			[]cli.Flag{&cli.StringFlag{Name: "to", Usage: "`FILE` to write; it must not exist", Required: true}}, w.reportExport),
		verb("verify", "judge such a file, offline and by itself", "FILE",
			"A report that was changed, a ledger that was changed or shortened, and one that no other site vouches for are each refused by their code, exit 16. Anybody can make keys and sign a ledger with them: only with both pins, got from the two sites themselves (peer pin) and not from the file, is it proven whose it is and who vouches for it.",
			[]string{"afterimage report verify web.evidence --signed-by sha256:YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE --vouched-by sha256:YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI", "afterimage report verify web.evidence"},
			[]cli.Flag{&cli.StringFlag{Name: "signed-by", Usage: "`PIN` of the site that must have signed it"}, &cli.StringFlag{Name: "vouched-by", Usage: "`PIN` of the site that must have vouched for it"}}, w.reportVerify),
		verb("head", "print where this site's ledger ends, signed", "", "Carry the line to a peer and run report vouch there.",
			[]string{"afterimage report head"}, nil, w.reportHead),
		verb("vouch", "keep a peer's head here and sign it", "TOKEN", "A ledger that is shorter than what was kept of it, or another one, is refused. Carry the line that is printed back and run report keep there.",
			[]string{"afterimage report vouch aihead1-AAAA"}, nil, w.tokenVerb(control.API.VouchLedger, "vouched for %s: %d entries\n")),
		verb("keep", "keep a peer's word for this site's ledger", "TOKEN", "",
			[]string{"afterimage report keep aianchor1-AAAA"}, nil, w.tokenVerb(control.API.KeepAnchor, "site %s vouches for the first %d entries\n")),
	)
}

func (w *world) reportList(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	reports, err := api.Reports(c.Context)
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(map[string]any{"reports": reports}, func() string {
		if len(reports) == 0 {
			return "no reports\n"
		}
		t := p.newTable("#", "NAME", "KIND", "GROUP", "TIME", "RTO", "HELD", "ANCHORED")
		for _, r := range reports {
			t.row(fmt.Sprint(r.N), r.Name, r.Kind, orDash(r.Group), p.when(r.Time), seconds(r.RTO), yesNo(r.Held), yesNo(r.Anchored))
		}
		return t.String()
	})
}

func (w *world) reportExport(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	x, err := api.ExportReport(c.Context, control.ReportRequest{Name: c.Args().First()})
	if err != nil {
		return err
	}
	to := c.String("to")
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if os.IsExist(err) {
		return fault.Wrap(fault.FileExists, "export report to "+to, err)
	}
	if err == nil {
		_, err = f.Write(x.File)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		return fault.Wrap(fault.FileTrouble, "export report to "+to, err)
	}
	p := w.printer(c)
	return p.data(map[string]any{"name": x.Name, "file": to, "bytes": len(x.File)}, func() string { return fmt.Sprintf("%s: %s\n", to, size(int64(len(x.File)))) })
}

// maxEvidence bounds what is read of a file that anybody may have written.
const maxEvidence = 64 << 20

func (w *world) reportVerify(c *cli.Context) error {
	name := c.Args().First()
	f, err := os.Open(name)
	if err != nil {
		return fault.Wrap(fault.FileTrouble, "verify report "+name, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxEvidence))
	if err != nil {
		return fault.Wrap(fault.FileTrouble, "verify report "+name, err)
	}
	v, err := site.VerifyReport(text, c.String("signed-by"), c.String("vouched-by"))
	if err != nil {
		return err
	}
	p := w.printer(c)
	if !v.PinChecked || !v.ByPinChecked {
		p.note("Pins that were not checked prove nothing about who signed: give --signed-by and --vouched-by, from peer pin at those sites.")
	}
	return p.data(v, func() string { return p.verdict(v) })
}

// verdict says no more than what was compared with a pin.
func (p *printer) verdict(v control.ReportVerdict) string {
	var b strings.Builder
	said := func(checked bool, pin string) string {
		if checked {
			return "pin " + pin
		}
		return "pin " + pin + " (not checked)"
	}
	if v.PinChecked && v.ByPinChecked {
		fmt.Fprintf(&b, "%s is as it was written\n", v.Report.Name)
	} else {
		fmt.Fprintf(&b, "%s agrees with the ledger in the file; pins not checked\n", v.Report.Name)
	}
	fmt.Fprintf(&b, "%s of %s, %s, RTO %s, held: %s\n", v.Report.Kind, orDash(v.Report.Group), p.when(v.Report.Time), seconds(v.Report.RTO), yesNo(v.Report.Held))
	fmt.Fprintf(&b, "entry %d of %d in the ledger of site %s, %s\n", v.Report.N, v.Entries, v.Site, said(v.PinChecked, v.Pin))
	by := "vouched for by"
	if !v.ByPinChecked {
		by = "signed too by a key that names itself"
	}
	fmt.Fprintf(&b, "%s site %s, %s, %s\n", by, v.By, said(v.ByPinChecked, v.ByPin), p.when(v.Anchored))
	return b.String()
}

func (w *world) reportHead(c *cli.Context) error {
	_, api, err := w.site(c)
	if err != nil {
		return err
	}
	t, err := api.LedgerHead(c.Context)
	if err != nil {
		return err
	}
	p := w.printer(c)
	return p.data(t, func() string { return t.Token + "\n" })
}

// tokenVerb brings a token to the site; an anchor that comes of it is printed.
func (w *world) tokenVerb(do func(control.API, context.Context, control.TokenRequest) (control.Token, error), said string) func(*cli.Context) error {
	return func(c *cli.Context) error {
		_, api, err := w.site(c)
		if err != nil {
			return err
		}
		given := c.Args().First()
		t, err := do(api, c.Context, control.TokenRequest{Token: given})
		if err != nil {
			return err
		}
		p := w.printer(c)
		p.note(strings.TrimSuffix(said, "\n"), t.Site, t.Entries)
		return p.data(t, func() string {
			if t.Token == given {
				return ""
			}
			return t.Token + "\n"
		})
	}
}
