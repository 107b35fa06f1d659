package runbook

import _ "embed"

// Sample is a runbook with every kind of step and every key, each with what it means.
//
//go:embed sample.yml
var Sample string
