package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
)

type helpCommand struct {
	Settings helpSettings `cmd:"" help:"Print all environment variables."`
}

type helpSettings struct{}

// Run is for kong.
func (helpSettings) Run(c *call) error { return printSettings(c.stdout) }

// shownDefault is the default as people read it.
func (v variable) shownDefault() string {
	switch {
	case v.required && v.part == partSink:
		return "required for a sink"
	case v.required:
		return "required"
	}
	return cmp.Or(v.def, v.shown, "none")
}

func (v variable) shownDoc() string {
	if v.secret {
		return v.doc + " (or " + v.name + fileSuffix + ", a file that holds it)"
	}
	return v.doc
}

func printSettings(w io.Writer) error {
	var text strings.Builder
	text.WriteString("Environment variables. Durations as 500ms, 10s, 5m, 168h; sizes with B, KiB, MiB or GiB; empty is unset.\n\n")
	for _, v := range variables {
		fmt.Fprintf(&text, "%s (%s)\n    %s\n", v.name, v.shownDefault(), v.shownDoc())
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// settingsTable is the README's table.
func settingsTable() string {
	var text strings.Builder
	text.WriteString("| variable | default | |\n|---|---|---|\n")
	for _, v := range variables {
		def := v.shownDefault()
		if v.def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(&text, "| `%s` | %s | %s |\n", v.name, def, strings.ReplaceAll(strings.ReplaceAll(v.shownDoc(), "<", "&lt;"), "|", "\\|"))
	}
	return text.String()
}
