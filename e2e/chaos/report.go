package chaos

import (
	"encoding/json"
	"fmt"
	"io"
)

// Print writes the report for people, and as one line of JSON at the end.
func (r *Report) Print(out io.Writer) {
	for _, text := range r.Ended {
		fmt.Fprintln(out, text)
	}
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // numbers, strings and maps of them
	}
	fmt.Fprintf(out, "%s\n", text)
}
