package query

import "github.com/prometheus/client_golang/prometheus"

// Outcomes of a query.
const (
	outcomeAnswered = "answered"
	outcomeMoving   = "moving"  // 503
	outcomeRefused  = "refused" // the request is wrong, or may not ask
	outcomeFailed   = "failed"  // a setting is wrong, or Kafka refuses
)

type metrics struct {
	queries  *prometheus.CounterVec
	duration prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) (metrics, error) {
	m := metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "offhook_query_requests_total", Help: "Requests of the query API by outcome: answered, moving (503), refused, failed.",
		}, []string{"outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "offhook_query_duration_seconds", Help: "How long an answer of the query API took.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
	}
	for _, o := range []string{outcomeAnswered, outcomeMoving, outcomeRefused, outcomeFailed} {
		m.queries.WithLabelValues(o)
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.queries, m.duration} {
		if err := reg.Register(c); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (m metrics) count(outcome string) { m.queries.WithLabelValues(outcome).Inc() }
