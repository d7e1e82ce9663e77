package sink

import "time"

// The bounds of a retry's delay.
const (
	backoffBase = 250 * time.Millisecond
	backoffCap  = 60 * time.Second
)

// RetryDelay is the delay before the next attempt of a request that has failed attempts times (at least once):
// exponential backoff with full jitter, min(cap, base·2^(attempts-1)) · random, where random is uniform in [0,1).
// Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
func RetryDelay(attempts int, random float64) time.Duration {
	ceiling := backoffCap
	if shift := attempts - 1; shift < 16 && backoffBase<<shift < backoffCap {
		ceiling = backoffBase << max(shift, 0)
	}
	return time.Duration(float64(ceiling) * random)
}
