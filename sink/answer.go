package sink

import (
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Verdict is what an answer means for the batch that was sent: a closed list, the rows of docs/design.md's table "What an
// answer means to the sink".
type Verdict string

// The verdicts.
const (
	VerdictDelivered Verdict = "delivered" // 2xx: done
	VerdictRetry     Verdict = "retry"     // the endpoint cannot take it now, or nobody knows whether it did
	VerdictRefused   Verdict = "refused"   // the content is refused: halve, down to the single event
	VerdictEndpoint  Verdict = "endpoint"  // the endpoint or its settings are wrong, not the event: retry, and say so
)

// statusTooLarge tells what the endpoint's limit is.
const statusTooLarge = http.StatusRequestEntityTooLarge

// JudgeStatus is the verdict on an HTTP status.
func JudgeStatus(status int) Verdict {
	switch {
	case status/100 == 2:
		return VerdictDelivered
	case status/100 == 5:
		return VerdictRetry
	}
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return VerdictRetry
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return VerdictRefused
	}
	return VerdictEndpoint
}

// Failure is why an attempt got no answer: a closed list, the label of metrics and logs.
type Failure string

// Why an attempt got no answer.
const (
	FailureTimeout    Failure = "timeout"    // OFFHOOK_WEBHOOK_TIMEOUT has passed
	FailureConnection Failure = "connection" // no connection, or it broke
)

// An Answer is what became of one attempt. It holds nothing of the request or of the other side's words, and so may be logged.
type Answer struct {
	Verdict    Verdict
	Status     int           // the HTTP status; 0: there was none, and Failure says why
	Failure    Failure       // empty where there was a status
	RetryAfter time.Duration // what the endpoint asks for; 0: nothing
	Err        error         // what kept the answer away, in a text made here; nil where there was a status
}

// Code is the answer as one word: the HTTP status, timeout or connection.
func (a Answer) Code() string {
	if a.Status != 0 {
		return strconv.Itoa(a.Status)
	}
	return string(a.Failure)
}

// statusOf is the HTTP status that a code is; 0: it is none.
func statusOf(code string) int {
	status, err := strconv.Atoi(code)
	if err != nil || status < 100 || status > 999 {
		return 0
	}
	return status
}

// judgeCode is the verdict on a code.
func judgeCode(code string) Verdict {
	if status := statusOf(code); status != 0 {
		return JudgeStatus(status)
	}
	return VerdictRetry
}

// String is a sentence for the log.
func (a Answer) String() string {
	if a.Status != 0 {
		return "the endpoint answered " + strconv.Itoa(a.Status)
	}
	if a.Err == nil {
		return string(a.Failure)
	}
	return string(a.Failure) + ": " + a.Err.Error()
}

// LogValue makes the log show the sentence.
func (a Answer) LogValue() slog.Value { return slog.StringValue(a.String()) }

// retryAfterMax is the longest Retry-After that is honoured.
const retryAfterMax = 5 * time.Minute

// RetryAfter is the delay that a Retry-After header asks for: seconds or an HTTP date (RFC 9110, section 10.2.3), at most five
// minutes. 0: none, or one that cannot be read.
func RetryAfter(header string, now time.Time) time.Duration {
	header = strings.TrimSpace(header)
	seconds, err := strconv.ParseUint(header, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return retryAfterMax
	}
	if err == nil {
		return time.Duration(min(seconds, uint64(retryAfterMax/time.Second))) * time.Second
	}
	at, err := http.ParseTime(header)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), retryAfterMax)
}
