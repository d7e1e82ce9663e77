package presence

import "github.com/prometheus/client_golang/prometheus"

// metrics are the stage's figures.
type metrics struct {
	events        *prometheus.CounterVec // outcome
	statuses      prometheus.Counter
	offline       prometheus.Counter
	pushes        prometheus.Counter
	expires       prometheus.Counter
	restored      prometheus.Counter
	purged        prometheus.Counter
	purgeFailures prometheus.Counter
	connections   prometheus.Gauge
	users         prometheus.Gauge

	reg prometheus.Registerer
	all []prometheus.Collector
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &metrics{
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "offhook_presence_events_total", Help: "Connection events by what they did to the table.",
		}, []string{"outcome"}),
		statuses:      counter("offhook_presence_online_status_total", "user.onlinestatus events produced."),
		offline:       counter("offhook_presence_offline_messages_total", "msg.offline events produced."),
		pushes:        counter("offhook_presence_offline_recipients_total", "Offline recipients in the msg.offline events produced."),
		expires:       counter("offhook_presence_expires_total", "Connections whose close was asked for, since nothing was heard of them for OFFHOOK_CONNECTION_TTL."),
		restored:      counter("offhook_presence_restored_records_total", "Records of the presence topic that were read for restores."),
		purged:        counter("offhook_presence_purged_records_total", "Offsets of the inbox that were purged after they were consumed."),
		purgeFailures: counter("offhook_presence_purge_failures_total", "Purges of the inbox that failed."),
		connections:   gauge("offhook_presence_connections", "Live connections in the partitions that this process owns."),
		users:         gauge("offhook_presence_users", "Users with a live connection in the partitions that this process owns."),
	}
	for _, o := range Outcomes() {
		m.events.WithLabelValues(string(o))
	}
	if reg == nil {
		return m, nil
	}
	m.reg = reg
	for _, c := range []prometheus.Collector{m.events, m.statuses, m.offline, m.pushes, m.expires, m.restored, m.purged, m.purgeFailures, m.connections, m.users} {
		if err := reg.Register(c); err != nil {
			m.unregister()
			return nil, err
		}
		m.all = append(m.all, c)
	}
	return m, nil
}

func (m *metrics) unregister() {
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}

func (m *metrics) add(t *tally) {
	for outcome, n := range t.outcomes {
		m.events.WithLabelValues(string(outcome)).Add(float64(n))
	}
	m.statuses.Add(float64(t.statuses))
	m.offline.Add(float64(t.offline))
	m.pushes.Add(float64(t.pushes))
	m.expires.Add(float64(t.expires))
}
