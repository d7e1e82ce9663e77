package chaos

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/offhook/offhook/internal/oracle"
	"github.com/offhook/offhook/schemas"
)

// Print writes the report for people, and as one line of JSON at the end.
func (r *Report) Print(out io.Writer) {
	for _, text := range r.Ended {
		fmt.Fprintln(out, text)
	}
	v := r.Verdict
	for _, f := range v.Findings {
		fmt.Fprintf(out, "%s: %s\n", f.Kind, f.Text)
	}
	if v.Requests > 0 {
		items := v.Events[string(schemas.EventOnlineStatus)] + v.Events[string(schemas.EventNotify)] + v.OfflineItems
		other := int64(0)
		for kind, n := range v.Counts {
			switch kind {
			case oracle.Lost, oracle.LostInput, oracle.Duplicate, oracle.OutOfOrder, oracle.WrongCount:
			default:
				other += n
			}
		}
		fmt.Fprintf(out, "%d items in %d requests (%d repeated) of %d records: %d lost, %d duplicates after dedupe, %d out of order, %d wrong counts, %d other findings; %d dead letters, longest stall %.1f s\n",
			items, v.Requests, v.Repeated, v.Inputs, v.Counts[oracle.Lost]+v.Counts[oracle.LostInput], v.Counts[oracle.Duplicate], v.Counts[oracle.OutOfOrder],
			v.Counts[oracle.WrongCount], other, v.DeadLettered, v.Stall)
	}
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // numbers, strings and maps of them
	}
	fmt.Fprintf(out, "%s\n", text)
}
