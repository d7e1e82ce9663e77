package txn

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the loop's figures, all labelled with the stage.
type metrics struct {
	transactions *prometheus.CounterVec // outcome
	duration     prometheus.Histogram
	consumed     prometheus.Counter
	produced     prometheus.Counter
	gapRecords   prometheus.Counter
	gaps         prometheus.Counter
	sessions     prometheus.Counter
	restores     *prometheus.CounterVec // outcome
	restoreTime  prometheus.Histogram
	partitions   prometheus.Gauge

	reg prometheus.Registerer
	all []prometheus.Collector
}

func newMetrics(reg prometheus.Registerer, stage string) (*metrics, error) {
	m := &metrics{
		transactions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "offhook_transactions_total",
			Help: "Kafka transactions by outcome: committed, aborted (all of it is done again), failed (the state is restored).",
		}, []string{"outcome"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "offhook_transaction_duration_seconds",
			Help:    "Time from a transaction's first record to its end.",
			Buckets: []float64{.002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30},
		}),
		consumed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "offhook_records_consumed_total", Help: "Records consumed in committed transactions.",
		}),
		produced: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "offhook_records_produced_total", Help: "Records produced in committed transactions.",
		}),
		gapRecords: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "offhook_gap_records_total", Help: "Offsets that were gone from the log before they were read.",
		}),
		gaps: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "offhook_gaps_total", Help: "Times that reading went on behind a gap in the log.",
		}),
		sessions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "offhook_sessions_total", Help: "Sessions begun; each after the first follows a failure.",
		}),
		restores: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "offhook_restores_total", Help: "Restores of an assigned partition by outcome: done, failed (tried again), cancelled (revoked meanwhile).",
		}, []string{"outcome"}),
		restoreTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "offhook_restore_duration_seconds",
			Help:    "Time from a partition's assignment to its readiness.",
			Buckets: prometheus.ExponentialBuckets(.005, 2.5, 12),
		}),
		partitions: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "offhook_partitions_assigned", Help: "Partitions that this process owns.",
		}),
	}
	for _, o := range []string{outcomeCommitted, outcomeAborted, outcomeFailed} {
		m.transactions.WithLabelValues(o)
	}
	for _, o := range []string{restoreDone, restoreFailed, restoreCancelled} {
		m.restores.WithLabelValues(o)
	}
	if reg == nil {
		return m, nil
	}
	m.reg = prometheus.WrapRegistererWith(prometheus.Labels{"stage": stage}, reg)
	m.all = []prometheus.Collector{m.transactions, m.duration, m.consumed, m.produced, m.gapRecords, m.gaps, m.sessions, m.restores, m.restoreTime, m.partitions}
	for i, c := range m.all {
		if err := m.reg.Register(c); err != nil {
			m.all = m.all[:i]
			m.unregister()
			return nil, errors.Join(err)
		}
	}
	return m, nil
}

func (m *metrics) unregister() {
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

const (
	outcomeCommitted = "committed"
	outcomeAborted   = "aborted"
	outcomeFailed    = "failed"

	restoreDone      = "done"
	restoreFailed    = "failed"
	restoreCancelled = "cancelled"
)
