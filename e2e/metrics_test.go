package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// families are the metrics of one scrape, by name.
type families map[string]*dto.MetricFamily

// scrape reads /metrics.
func scrape(t *testing.T, p *process) families {
	t.Helper()
	status, body := p.get("/metrics")
	if status != http.StatusOK {
		t.Fatalf("GET /metrics of offhook %s: %d %s", p.name, status, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatalf("parse /metrics: %v", err)
	}
	return all
}

// sum is the sum of the series of a metric, a histogram's count where it is one, that have the labels, given as
// "name=value". ok is false where there is none.
func (f families) sum(name string, labels ...string) (sum float64, ok bool) {
series:
	for _, m := range f[name].GetMetric() {
		has := make(map[string]bool)
		for _, l := range m.GetLabel() {
			has[l.GetName()+"="+l.GetValue()] = true
		}
		for _, label := range labels {
			if !has[label] {
				continue series
			}
		}
		ok = true
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return sum, ok
}

// count is what a metric is to be.
type count struct {
	name   string
	labels []string
	want   float64
}

// checkCounts holds metrics against what they are to be.
func checkCounts(t *testing.T, p *process, counts []count) {
	t.Helper()
	f := scrape(t, p)
	for _, c := range counts {
		switch got, ok := f.sum(c.name, c.labels...); {
		case !ok:
			t.Errorf("there is no metric %s %v", c.name, c.labels)
		case got != c.want:
			t.Errorf("metric %s %v is %v, want %v", c.name, c.labels, got, c.want)
		}
	}
}

// checkLint fails the test where promlint finds something.
func checkLint(t *testing.T, p *process) {
	t.Helper()
	_, body := p.get("/metrics")
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatalf("lint /metrics: %v", err)
	}
	for _, problem := range problems {
		t.Errorf("promlint: %s: %s", problem.Metric, problem.Text)
	}
}

// acceptanceCounts are the metrics of an `offhook run` that has seen the acceptance table and its two messages.
var acceptanceCounts = []count{
	{"offhook_route_records_total", []string{"input=connections"}, 12},
	{"offhook_route_records_total", []string{"input=messages"}, 2},
	{"offhook_route_null_records_total", nil, 0},
	{"offhook_route_dead_letters_total", nil, 0},
	{"offhook_route_dropped_recipients_total", nil, 0},
	{"offhook_route_messages_without_recipients_total", nil, 0},
	{"offhook_route_messages_without_push_total", nil, 0},
	{"offhook_presence_events_total", []string{"outcome=opened"}, 5},
	{"offhook_presence_events_total", []string{"outcome=refreshed"}, 1},
	{"offhook_presence_events_total", []string{"outcome=closed"}, 2},
	{"offhook_presence_events_total", []string{"outcome=not_open"}, 1},
	{"offhook_presence_events_total", []string{"outcome=heartbeat_unknown"}, 1},
	{"offhook_presence_events_total", []string{"outcome=node_started"}, 4}, // in each inbox partition
	{"offhook_presence_events_total", []string{"outcome=stale"}, 1},
	{"offhook_presence_online_status_total", nil, 8},
	{"offhook_presence_offline_messages_total", nil, 2},
	{"offhook_presence_offline_recipients_total", nil, 2},
	{"offhook_presence_connections", nil, 2},
	{"offhook_presence_users", nil, 2},
	{"offhook_sink_events_total", []string{"event=user.onlinestatus", "outcome=delivered", "sink=default"}, 8},
	{"offhook_sink_events_total", []string{"event=msg.notify", "outcome=delivered", "sink=default"}, 2},
	{"offhook_sink_events_total", []string{"event=msg.offline", "outcome=delivered", "sink=default"}, 2},
	{"offhook_transactions_total", []string{"outcome=failed"}, 0},
	{"offhook_gaps_total", nil, 0},
	{"offhook_gap_records_total", nil, 0},
	{"offhook_sink_retention_gaps_total", nil, 0},
	{"offhook_sink_rewinds_total", nil, 0},
	{"offhook_build_info", nil, 1},
}
