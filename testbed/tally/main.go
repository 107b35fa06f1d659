// Command tally reads what `go test -json` prints, so that testbed/check shows what
// a person wants to see and CI can read how many tests ran.
//
//	go test -json ./... | tally -keep FILE                 follow one run
//	tally -sum [-counts counted.txt] [-from FILE] [-parts parts.txt] FILE...  the closing lines
//
// While it follows a run it prints a line for every package, the whole output of
// every test that fails, and the name of every test that skips; it keeps the run's
// sums and counts in FILE. It exits 1 when a test failed or when nothing ran.
// -sum adds such files up, holds the counts of those named by -from against the
// minimum numbers of -counts, tells what the parts of -parts took, and ends with "N passed, N failed".
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
)

func main() {
	keep := flag.String("keep", "", "`file` that takes the sums of the run on stdin")
	sum := flag.Bool("sum", false, "add up the files named as arguments")
	counts := flag.String("counts", "", "with -sum: `file` of lines 'name minimum'")
	from := flag.String("from", "", "with -counts: the kept `file` whose counts are judged")
	parts := flag.String("parts", "", "with -sum: `file` of lines 'name regexp' of tests whose time is added up")
	flag.Parse()
	var err error
	if *sum {
		err = total(os.Stdout, flag.Args(), *counts, *from, *parts)
	} else {
		err = follow(*keep)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(1)
	}
}

func follow(keep string) error {
	run, err := Read(os.Stdin, os.Stdout)
	if err != nil {
		return err
	}
	if keep != "" {
		b, err := json.Marshal(run)
		if err != nil {
			return err
		}
		if err := os.WriteFile(keep, b, 0o666); err != nil {
			return err
		}
	}
	return run.verdict()
}
