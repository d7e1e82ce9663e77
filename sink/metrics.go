package sink

import (
	"github.com/offhook/offhook/schemas"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are a sink's; the label sink is on each of them.
type metrics struct {
	events      *prometheus.CounterVec // event, outcome: delivered, dead
	attempts    *prometheus.CounterVec // event, outcome: an HTTP status, timeout, connection
	duration    prometheus.Histogram
	batches     *prometheus.CounterVec // event, ended
	batchEvents prometheus.Histogram
	inFlight    prometheus.Gauge
	lanes       prometheus.Gauge
	buffered    prometheus.Gauge
	commits     *prometheus.CounterVec // outcome: committed, refused, unknown
	sessions    prometheus.Counter
	dropped     prometheus.Counter
	truncated   prometheus.Counter
	recreated   prometheus.Counter
	readErrors  prometheus.Counter
	rewinds     prometheus.Counter
	missing     prometheus.Counter
	halvings    prometheus.Counter
	deadLetters *prometheus.CounterVec // reason
	breakerOpen prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer, sink string) *metrics {
	f := promauto.With(prometheus.WrapRegistererWith(prometheus.Labels{"sink": sink}, reg))
	return &metrics{
		events: f.NewCounterVec(prometheus.CounterOpts{
			Name: "offhook_sink_events_total", Help: "Events that are done, by event and outcome (delivered, dead).",
		}, []string{"event", "outcome"}),
		attempts: f.NewCounterVec(prometheus.CounterOpts{
			Name: "offhook_sink_attempts_total", Help: "Attempts to deliver a batch, by event and outcome (the HTTP status, timeout, connection).",
		}, []string{"event", "outcome"}),
		duration: f.NewHistogram(prometheus.HistogramOpts{
			Name: "offhook_sink_attempt_duration_seconds", Help: "Time from the start of an attempt to its answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
		batches: f.NewCounterVec(prometheus.CounterOpts{
			Name: "offhook_sink_batches_total", Help: "Batches sent, by event and by why they ended (count, bytes, age; plan: planned by an earlier owner; half: of one that was refused).",
		}, []string{"event", "ended"}),
		batchEvents: f.NewHistogram(prometheus.HistogramOpts{
			Name: "offhook_sink_batch_events", Help: "Events in a batch.", Buckets: prometheus.ExponentialBuckets(1, 2, 12),
		}),
		inFlight: f.NewGauge(prometheus.GaugeOpts{Name: "offhook_sink_requests_in_flight", Help: "Requests that wait for the endpoint's answer."}),
		lanes:    f.NewGauge(prometheus.GaugeOpts{Name: "offhook_sink_lanes", Help: "Partitions of event topics that this process delivers."}),
		buffered: f.NewGauge(prometheus.GaugeOpts{Name: "offhook_sink_buffered_bytes", Help: "Bytes of events that are read and not done."}),
		commits: f.NewCounterVec(prometheus.CounterOpts{
			Name: "offhook_sink_commits_total", Help: "Commit requests for plans and acknowledgements, by outcome (committed, refused, unknown).",
		}, []string{"outcome"}),
		sessions: f.NewCounter(prometheus.CounterOpts{
			Name: "offhook_sink_session_restarts_total", Help: "Group memberships that were given up for a new one.",
		}),
		dropped: f.NewCounter(prometheus.CounterOpts{
			Name: "offhook_sink_retention_gaps_total", Help: "Partitions whose log's start had passed the events to deliver next: retention has deleted events.",
		}),
		truncated: f.NewCounter(prometheus.CounterOpts{
			Name: "offhook_sink_truncations_total", Help: "Partitions whose log ended before what was planned: the brokers have lost events.",
		}),
		recreated: f.NewCounter(prometheus.CounterOpts{
			Name: "offhook_sink_topics_recreated_total", Help: "Partitions found under another topic id than their plan's, and begun at the log's start.",
		}),
		readErrors: f.NewCounter(prometheus.CounterOpts{
			Name: "offhook_sink_read_errors_total", Help: "Errors of a partition's fetches, each of which begins its lane anew.",
		}),
		rewinds: f.NewCounter(prometheus.CounterOpts{
			Name: "offhook_sink_rewinds_total", Help: "Committed offsets found that no sink wrote, each taken as a rewind.",
		}),
		missing: f.NewCounter(prometheus.CounterOpts{
			Name: "offhook_sink_plan_records_missing_total", Help: "Planned batches whose last record the log has lost; what is left of one goes to the dead letters.",
		}),
		halvings: f.NewCounter(prometheus.CounterOpts{
			Name: "offhook_sink_halvings_total", Help: "Batches whose content the endpoint refused, and that were halved.",
		}),
		deadLetters: f.NewCounterVec(prometheus.CounterOpts{
			Name: "offhook_sink_dead_letters_total", Help: "Events written to the dead letters, by reason (cut, refused, gave_up, skipped).",
		}, []string{"reason"}),
		breakerOpen: f.NewGauge(prometheus.GaugeOpts{
			Name: "offhook_sink_breaker_open", Help: "1 while no request succeeds any more and one at a time tries the endpoint.",
		}),
	}
}

func (m *metrics) done(event schemas.Event, outcome string, n int) {
	m.events.WithLabelValues(string(event), outcome).Add(float64(n))
}
