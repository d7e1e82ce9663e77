package simulator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/IBM/sarama"

	"github.com/offhook/offhook/internal/truth"
)

// saramaConfig is what a careful pipeline would set: all replicas acknowledge, no record twice, the default (hash)
// partitioner. A broker's restart is outlived.
// Once ctx has ended nothing is waited for between retries and the network is gone, so that a producer that was given up runs
// out of them, and whatever else sarama waits for ends.
func saramaConfig(ctx context.Context, cfg Config) (*sarama.Config, error) {
	c := sarama.NewConfig()
	c.ClientID = "offhook-simulate"
	c.Metadata.AllowAutoTopicCreation = false
	c.Metadata.Retry.Max = 20 // a topic made a moment ago has no leader yet
	c.Metadata.Retry.BackoffFunc = backoff(ctx)
	c.Net.DialTimeout = 10 * time.Second
	c.Net.ReadTimeout = 20 * time.Second
	c.Net.WriteTimeout = 20 * time.Second
	c.Net.MaxOpenRequests = 1
	c.Producer.Idempotent = true
	c.Producer.RequiredAcks = sarama.WaitForAll
	c.Producer.Return.Successes = true
	c.Producer.Return.Errors = true
	c.Producer.Retry.Max = 120
	c.Producer.Retry.BackoffFunc = backoff(ctx)
	if cfg.Persist {
		// A producer that is not idempotent has no sequence that a record which failed could break.
		c.Producer.Idempotent = false
		c.Producer.Retry.Max = persistRetries
		c.Metadata.Retry.Max = persistRetries
		c.Metadata.RefreshFrequency = persistRefresh
	}
	if cfg.TLS != nil {
		c.Net.TLS.Enable = true
		c.Net.TLS.Config = cfg.TLS
	}
	dial := cfg.Dialer
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	c.Net.Proxy.Enable = true
	c.Net.Proxy.Dialer = dialer{ctx: ctx, dial: dial, timeout: c.Net.DialTimeout}
	if cfg.SASLMechanism != "" {
		c.Net.SASL.Enable = true
		c.Net.SASL.User = cfg.SASLUsername
		c.Net.SASL.Password = cfg.SASLPassword
		c.Net.SASL.Mechanism = sarama.SASLMechanism(cfg.SASLMechanism)
		switch cfg.SASLMechanism {
		case sarama.SASLTypePlaintext:
		case sarama.SASLTypeSCRAMSHA256, sarama.SASLTypeSCRAMSHA512:
			c.Net.SASL.SCRAMClientGeneratorFunc = func() sarama.SCRAMClient { return newSCRAM(cfg.SASLMechanism) }
		default:
			return nil, errors.New("SASL mechanism: must be PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
		}
	}
	return c, nil
}

// retryBackoff is the pause between sarama's retries.
const retryBackoff = 250 * time.Millisecond

// With Config.Persist: pauses of retryBackoff alone make up five minutes, and new partitions are seen soon.
const (
	persistRetries = 1200
	persistRefresh = 3 * time.Second
)

func backoff(ctx context.Context) func(retries, maxRetries int) time.Duration {
	return func(int, int) time.Duration {
		if ctx.Err() != nil {
			return 0
		}
		return retryBackoff
	}
}

// dialer is Config.Dialer as sarama takes it, a proxy.Dialer of golang.org/x/net, whose connections end with ctx.
type dialer struct {
	ctx     context.Context
	dial    func(ctx context.Context, network, host string) (net.Conn, error)
	timeout time.Duration
}

func (d dialer) Dial(network, host string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, d.timeout)
	defer cancel()
	conn, err := d.dial(ctx, network, host)
	if err != nil {
		return nil, err
	}
	// Whoever waits for an answer on it is told so by its end.
	return endingConn{conn, context.AfterFunc(d.ctx, func() { _ = conn.Close() })}, nil
}

// endingConn is a connection that something closes unless it is closed before.
type endingConn struct {
	net.Conn
	forget func() bool
}

func (c endingConn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// producer writes records and keeps the books of their acknowledgement. send, flush and close are called by one
// goroutine; another, which close waits for, takes the acknowledgements.
type producer struct {
	client sarama.Client
	async  sarama.AsyncProducer
	truth  truth.Recorder // nil: none
	acks   *acks          // nil: none
	// persist: a record that fails ends nothing
	persist bool
	failed  context.Context
	fail    context.CancelCauseFunc
	giveUp  func()        // ends the pauses between sarama's retries
	acked   chan struct{} // holds one when something was settled since it was last emptied
	done    chan struct{} // closed when the last acknowledgement was taken

	mu      sync.Mutex
	pending map[*record]struct{} // sent and not settled
	doubted map[string]bool      // uids of which a record failed: their later statuses are no facts
	late    bool                 // no longer waiting: nothing more is recorded
	total   Summary
	lines   struct{ messages, items int64 } // recorded
}

// connect is newProducer under a context, which sarama does not take.
func connect(ctx context.Context, cfg Config, deps Deps) (*producer, error) {
	given, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	config, err := saramaConfig(given, cfg)
	if err != nil {
		giveUp()
		return nil, err
	}
	type result struct {
		p   *producer
		err error
	}
	made := make(chan result)
	go func() {
		p, err := newProducer(cfg, config, deps)
		if err == nil {
			p.giveUp = giveUp
		} else {
			giveUp()
		}
		select {
		case made <- result{p, err}:
		case <-ctx.Done():
			if err == nil {
				_ = p.close(ctx, cfg.FlushTimeout) // nothing was sent, nobody waits for it
			}
		}
	}()
	select {
	case r := <-made:
		return r.p, r.err
	case <-ctx.Done():
		giveUp()
		return nil, fmt.Errorf("connect to Kafka: %w", context.Cause(ctx))
	}
}

func newProducer(cfg Config, config *sarama.Config, deps Deps) (*producer, error) {
	client, err := sarama.NewClient(cfg.Brokers, config)
	if err != nil {
		return nil, fmt.Errorf("connect to Kafka: %w", err)
	}
	// The producer hashes keys over the partitions; it must know them before the first record.
	for _, topic := range []string{cfg.ConnectionsTopic, cfg.MessagesTopic} {
		if _, err := client.Partitions(topic); err != nil {
			_ = client.Close() // the error that counts is the first
			return nil, fmt.Errorf("find topic %s: %w", topic, err)
		}
	}
	async, err := sarama.NewAsyncProducerFromClient(client)
	if err != nil {
		_ = client.Close()
		return nil, fmt.Errorf("make a producer: %w", err)
	}
	p := &producer{
		client: client, async: async, truth: deps.Truth, persist: cfg.Persist,
		acked: make(chan struct{}, 1), done: make(chan struct{}),
		pending: make(map[*record]struct{}), doubted: make(map[string]bool),
	}
	if deps.Acks != nil {
		p.acks = newAcks(deps.Acks)
	}
	p.failed, p.fail = context.WithCancelCause(context.Background())
	go p.settle()
	return p, nil
}

// record states a line that no acknowledgement is needed for.
func (p *producer) record(line truth.Line) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.recordLocked(line)
}

func (p *producer) recordLocked(line truth.Line) error {
	switch line.Kind {
	case truth.KindMessage:
		p.lines.messages++
	case truth.KindStatus:
		p.lines.items++
	}
	if p.truth == nil {
		return nil
	}
	return p.truth.Record(line)
}

// send hands a record to sarama; it waits while sarama's queue is full. False: ctx has ended or a record has failed,
// and this one was not sent.
func (p *producer) send(ctx context.Context, r *record) bool {
	p.mu.Lock()
	p.pending[r] = struct{}{}
	p.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-p.failed.Done():
	default:
		select {
		case p.async.Input() <- &sarama.ProducerMessage{
			Topic: r.topic, Key: sarama.StringEncoder(r.key), Value: sarama.ByteEncoder(r.value), Metadata: r,
			Offset: noOffset,
		}:
			return true
		case <-ctx.Done():
		case <-p.failed.Done():
		}
	}
	p.mu.Lock()
	delete(p.pending, r)
	p.mu.Unlock()
	return false
}

// flush waits until all that was sent is settled. False: ctx has ended or a record has failed.
func (p *producer) flush(ctx context.Context) bool {
	for {
		p.mu.Lock()
		left := len(p.pending)
		p.mu.Unlock()
		if left == 0 {
			return p.failed.Err() == nil
		}
		select {
		case <-p.acked:
		case <-ctx.Done():
			return false
		case <-p.failed.Done():
			return false
		}
	}
}

// close waits until all that was sent is settled and ends the producer. Once ctx has ended or a record has failed it
// waits for timeout at most; what is not settled by then is in doubt. It returns the first failure.
func (p *producer) close(ctx context.Context, timeout time.Duration) error {
	// Settled first, closed then: once it is to close, sarama gives up what it was about to try again.
	settled := p.drain(ctx, timeout)
	p.async.AsyncClose()
	if settled {
		p.await(timeout)
	} else {
		p.abandon()
	}
	p.giveUp()
	p.flushAcks()
	err := p.client.Close()
	if err != nil && !errors.Is(err, sarama.ErrClosedClient) {
		p.fail(fmt.Errorf("close the Kafka client: %w", err))
	}
	return context.Cause(p.failed)
}

// drain waits until all that was sent is settled, for timeout at most from when ctx has ended or a record has failed.
func (p *producer) drain(ctx context.Context, timeout time.Duration) bool {
	ended, failed := ctx.Done(), p.failed.Done()
	timer := time.NewTimer(timeout)
	timer.Stop() // it begins when one of the two comes
	defer timer.Stop()
	for {
		p.mu.Lock()
		left := len(p.pending)
		p.mu.Unlock()
		if left == 0 {
			return true
		}
		select {
		case <-p.acked:
			continue
		case <-timer.C:
			return false
		case <-ended:
		case <-failed:
		}
		ended, failed = nil, nil
		timer.Reset(timeout)
	}
}

func (p *producer) await(timeout time.Duration) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		p.abandon()
	}
}

// abandon gives up what is not settled: sarama cannot be told to, but runs out of retries by itself.
func (p *producer) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late = true
	if len(p.pending) > 0 && !p.persist {
		p.fail(fmt.Errorf("write: %d records are not acknowledged", len(p.pending)))
	}
	for r := range p.pending {
		p.doubt(r)
	}
}

// settle takes the acknowledgements, in sarama's order, which is that of a partition's log.
func (p *producer) settle() {
	defer close(p.done)
	successes, failures := p.async.Successes(), p.async.Errors()
	flush := time.NewTicker(time.Second)
	defer flush.Stop()
	for successes != nil || failures != nil {
		select {
		case m, ok := <-successes:
			if !ok {
				successes = nil
				continue
			}
			p.acknowledged(m)
		case e, ok := <-failures:
			if !ok {
				failures = nil
				continue
			}
			p.refused(e.Msg.Metadata.(*record), e.Err)
		case <-flush.C:
			p.flushAcks()
			continue
		}
		select {
		case p.acked <- struct{}{}:
		default:
		}
	}
}

func (p *producer) acknowledged(m *sarama.ProducerMessage) {
	r := m.Metadata.(*record)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.late {
		return
	}
	delete(p.pending, r)
	// Of a repetition that Kafka knows for one it may not know the offset.
	if p.acks != nil && m.Offset != noOffset {
		if err := p.acks.write(m.Topic, m.Partition, m.Offset, r.value); err != nil {
			p.fail(err)
		}
	}
	if r.message {
		p.total.Messages++
	} else {
		p.total.Connections++
	}
	p.total.Pushes += r.pushes
	for _, line := range r.lines {
		if line.Kind == truth.KindStatus {
			if p.doubted[line.UID] {
				continue
			}
			p.total.Statuses++
		}
		if err := p.recordLocked(line); err != nil {
			p.fail(err)
		}
	}
}

func (p *producer) refused(r *record, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.late {
		return
	}
	delete(p.pending, r)
	if !p.persist {
		p.fail(fmt.Errorf("write to %s: %w", r.topic, err))
	}
	p.doubt(r)
}

// doubt records that nobody knows whether Kafka took r. The caller holds the lock.
func (p *producer) doubt(r *record) {
	p.total.Doubtful++
	if r.message {
		for _, line := range r.lines {
			line.Doubt = true
			if err := p.recordLocked(line); err != nil {
				p.fail(err)
			}
		}
		return
	}
	for _, uid := range r.uids {
		if p.doubted[uid] {
			continue
		}
		p.doubted[uid] = true
		if err := p.recordLocked(truth.Line{Kind: truth.KindDoubt, UID: uid}); err != nil {
			p.fail(err)
		}
	}
}

func (p *producer) flushAcks() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.acks == nil {
		return
	}
	if err := p.acks.flush(); err != nil {
		p.fail(err)
	}
}

// end states the truth's end. Nothing may be recorded after it.
func (p *producer) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.recordLocked(truth.Line{Kind: truth.KindEnd, Messages: p.lines.messages, Items: p.lines.items})
}

// counts is what has been acknowledged so far, and how many records wait for it.
func (p *producer) counts() (Summary, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total, len(p.pending)
}
