package sink

import (
	"net/http"
	"testing"
	"time"
)

// TestJudgeStatus goes through the design's table row by row; what no row names is the endpoint's fault.
func TestJudgeStatus(t *testing.T) {
	want := make(map[int]Verdict)
	for status := 100; status < 600; status++ {
		want[status] = VerdictEndpoint
		switch {
		case status >= 200 && status < 300:
			want[status] = VerdictDelivered
		case status >= 500:
			want[status] = VerdictRetry
		}
	}
	for _, status := range []int{408, 425, 429} {
		want[status] = VerdictRetry
	}
	for _, status := range []int{400, 413, 415, 422} {
		want[status] = VerdictRefused
	}
	for status, verdict := range want {
		if got := JudgeStatus(status); got != verdict {
			t.Errorf("JudgeStatus(%d) = %s, want %s", status, got, verdict)
		}
	}
	for _, status := range []int{301, 302, 307, 401, 403, 404, 405, 410, 418, 451} {
		if got := JudgeStatus(status); got != VerdictEndpoint {
			t.Errorf("JudgeStatus(%d) = %s, want %s", status, got, VerdictEndpoint)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"":                     0,
		"0":                    0,
		"1":                    time.Second,
		" 120 ":                2 * time.Minute,
		"300":                  5 * time.Minute,
		"86400":                5 * time.Minute,
		"18446744073709551615": 5 * time.Minute,
		"99999999999999999999": 5 * time.Minute,
		"-5":                   0,
		"1.5":                  0,
		"soon":                 0,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(time.Hour).Format(http.TimeFormat):        5 * time.Minute,
		now.Add(-time.Hour).Format(http.TimeFormat):       0,
		now.Add(30 * time.Second).Format(time.RFC850):     30 * time.Second,
	} {
		if got := RetryAfter(header, now); got != want {
			t.Errorf("RetryAfter(%q) = %v, want %v", header, got, want)
		}
	}
}
