package main

import (
	"fmt"
	"strings"

	"github.com/offhook/offhook/schemas"
)

// queryDocument is what the OpenAPI document of the query API is asked for by.
const queryDocument = "query"

type schemasCommand struct {
	Name string `arg:"" optional:"" help:"Which schema; without it, their names are printed."`
}

// Run is for kong.
func (s schemasCommand) Run(c *call) error {
	if s.Name == "" {
		_, err := fmt.Fprintln(c.stdout, strings.Join(append(schemas.SchemaNames(), queryDocument), "\n"))
		return err
	}
	if s.Name == queryDocument {
		_, err := c.stdout.Write(schemas.QueryAPI())
		return err
	}
	text, err := schemas.Schema(s.Name)
	if err != nil {
		return &settingsError{name: "schema " + quote(s.Name), problem: "is unknown", example: strings.Join(append(schemas.SchemaNames(), queryDocument), ", ")}
	}
	_, err = c.stdout.Write(text)
	return err
}
