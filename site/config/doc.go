// Package config is the file by which a site is set up: its shape, its defaults
// and its judge.
//
// Load reads a file in four steps, each of which names every fault it finds
// with line, column, an excerpt of the source, a code and a hint:
//
//  1. the YAML is parsed (syntax.go);
//  2. its tree is walked beside the Go types (shape.go): unknown and double
//     keys, wrong kinds, values that their type does not understand;
//  3. it is decoded, strictly, and the defaults are filled in (defaults.go);
//  4. the meaning is judged (check.go): missing keys, names used twice, names
//     that refer to nothing, addresses and paths that cannot be.
//
// Nothing outside the file is looked at, so a file can be checked on another
// machine. Values are read-only after Load and may be shared.
package config
