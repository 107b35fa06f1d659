package config

import _ "embed"

// Sample is a configuration that has every key, each with what it means and its default.
// It is valid, but for the files and programs that it names.
//
//go:embed sample.yml
var Sample string
