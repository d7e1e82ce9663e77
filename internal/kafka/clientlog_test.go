package kafka

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func TestClientLogHoldsRepeatsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		log := newClientLog(slog.New(slog.NewTextHandler(&text, nil)))
		if log.Level() != kgo.LogLevelWarn {
			t.Errorf("level %v, want warnings alone", log.Level())
		}
		for range 60 * 60 { // an hour without a broker
			log.Log(kgo.LogLevelWarn, "no broker")
			time.Sleep(time.Second)
		}
		// At 0 s, 10, 30, 70, 150, 310 and then each 300 s: 7 + 10.
		if got := strings.Count(text.String(), "no broker"); got != 16 && got != 17 {
			t.Errorf("said %d times in an hour", got)
		}
		if !strings.Contains(text.String(), "repeats_not_logged=299") {
			t.Errorf("does not say what it held back:\n%s", text.String())
		}
		text.Reset()
		log.Log(kgo.LogLevelWarn, "another thing", "broker", 1)
		time.Sleep(time.Hour)
		log.Log(kgo.LogLevelWarn, "no broker")
		log.Log(kgo.LogLevelWarn, "no broker")
		if got := strings.Count(text.String(), "\n"); got != 2 {
			t.Errorf("want another message at once, and the first again after a quiet hour:\n%s", text.String())
		}
	})
}

func TestClientLogAtDebug(t *testing.T) {
	log := newClientLog(slog.New(slog.NewTextHandler(new(bytes.Buffer), &slog.HandlerOptions{Level: slog.LevelDebug})))
	if log.Level() != kgo.LogLevelInfo {
		t.Errorf("level %v, want info", log.Level())
	}
	log = newClientLog(slog.New(slog.NewTextHandler(new(bytes.Buffer), &slog.HandlerOptions{Level: slog.LevelError})))
	if log.Level() != kgo.LogLevelError {
		t.Errorf("level %v, want errors", log.Level())
	}
}
