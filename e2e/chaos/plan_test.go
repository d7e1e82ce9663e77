package chaos

import (
	"reflect"
	"testing"
	"time"
)

func TestPlan(t *testing.T) {
	const duration = 5 * time.Minute
	for seed := range uint64(50) {
		plan := Plan(seed, duration, 3, 3, 3, nil)
		if !reflect.DeepEqual(plan, Plan(seed, duration, 3, 3, 3, nil)) {
			t.Fatalf("seed %d: two plans", seed)
		}
		seen := make(map[Kind]int)
		for _, f := range plan {
			seen[f.Kind]++
			if f.At < 0 || f.For < 0 || f.At+f.For > duration {
				t.Errorf("seed %d: %v is outside of %v", seed, f, duration)
			}
		}
		for n, track := range tracks(3, 3, 3) {
			var free time.Duration
			for _, f := range plan {
				for _, c := range track {
					if f.Kind != c.kind {
						continue
					}
					if f.At < free {
						t.Errorf("seed %d, track %d: %v begins before %v", seed, n, f, free)
					}
					if free = f.At + f.For; f.For < c.least || f.For > c.most || f.Target < 0 || f.Target >= c.targets {
						t.Errorf("seed %d: %v", seed, f)
					}
				}
			}
			for _, c := range track {
				if seen[c.kind] == 0 {
					t.Errorf("seed %d: no %s in %v", seed, c.kind, duration)
				}
			}
		}
		if seen[GrowInputs] != 1 {
			t.Errorf("seed %d: the topics grow %d times", seed, seen[GrowInputs])
		}
	}
	if reflect.DeepEqual(Plan(1, duration, 3, 3, 3, nil), Plan(2, duration, 3, 3, 3, nil)) {
		t.Error("two seeds, one plan")
	}
	for _, f := range Plan(1, duration, 3, 3, 3, []Kind{KillSink, CutBroker}) {
		if f.Kind != KillSink && f.Kind != CutBroker {
			t.Errorf("%v was not asked for", f)
		}
	}
}
