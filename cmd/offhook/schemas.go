package main

import (
	"fmt"
	"strings"

	"github.com/offhook/offhook/schemas"
)

type schemasCommand struct {
	Name string `arg:"" optional:"" help:"Which schema; without it, their names are printed."`
}

// Run is for kong.
func (s schemasCommand) Run(c *call) error {
	if s.Name == "" {
		_, err := fmt.Fprintln(c.stdout, strings.Join(schemas.SchemaNames(), "\n"))
		return err
	}
	text, err := schemas.Schema(s.Name)
	if err != nil {
		return &settingsError{name: "schema " + quote(s.Name), problem: "is unknown", example: strings.Join(schemas.SchemaNames(), ", ")}
	}
	_, err = c.stdout.Write(text)
	return err
}
