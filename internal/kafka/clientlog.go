package kafka

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/plugin/kslog"
)

// Repeats of one message of the client are held back for repeatFirst, then twice that, up to repeatMost.
const (
	repeatFirst = 10 * time.Second
	repeatMost  = 5 * time.Minute
)

// clientLog passes on what the Kafka client has to say from warnings up (from info up where the log is at debug), and
// holds repeats back: a broker that is away makes the client say so several times a second.
type clientLog struct {
	kgo.Logger
	level kgo.LogLevel

	mu   sync.Mutex
	seen map[string]*repeats // by message; the client's messages are constants, so it stays small
}

type repeats struct {
	next     time.Time // when the message may be said again
	interval time.Duration
	held     int // since it was said
}

func newClientLog(log *slog.Logger) *clientLog {
	level := kgo.LogLevelWarn
	if log.Enabled(context.Background(), slog.LevelDebug) {
		level = kgo.LogLevelInfo
	}
	return &clientLog{Logger: kslog.New(log), level: level, seen: make(map[string]*repeats)}
}

// Level is for kgo.Logger.
func (l *clientLog) Level() kgo.LogLevel { return min(l.level, l.Logger.Level()) }

// Log is for kgo.Logger.
func (l *clientLog) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	held, say := l.admit(msg, time.Now())
	if !say {
		return
	}
	if held > 0 {
		keyvals = append(keyvals[:len(keyvals):len(keyvals)], "repeats_not_logged", held)
	}
	l.Logger.Log(level, msg, keyvals...)
}

func (l *clientLog) admit(msg string, now time.Time) (held int, say bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.seen[msg]
	if r == nil {
		r = &repeats{}
		l.seen[msg] = r
	}
	if now.Before(r.next) {
		r.held++
		return 0, false
	}
	if r.interval == 0 || now.Sub(r.next) > repeatMost {
		r.interval = repeatFirst // new, or quiet for long: it is news again
	} else {
		r.interval = min(2*r.interval, repeatMost)
	}
	r.next = now.Add(r.interval)
	held, r.held = r.held, 0
	return held, true
}
