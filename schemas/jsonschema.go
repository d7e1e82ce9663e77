package schemas

import (
	"embed"
	"fmt"
	"slices"
	"strings"
)

//go:embed json/*.json
var documents embed.FS

// schemaNames are the names of the JSON Schemas, in the order in which they are listed.
var schemaNames = []string{"connection", "message", "onlinestatus", "notify", "offline", "deadletter"}

// SchemaNames lists the JSON Schemas: connection and message are input records; onlinestatus, notify and offline
// webhook bodies; deadletter the headers of a dead letter, as an object.
func SchemaNames() []string { return append([]string(nil), schemaNames...) }

// Schema is the JSON Schema (draft 2020-12) of that name.
func Schema(name string) ([]byte, error) {
	if slices.Contains(schemaNames, name) {
		return documents.ReadFile("json/" + name + ".json")
	}
	return nil, fmt.Errorf("there is no schema %q; there are %s", name, strings.Join(schemaNames, ", "))
}
