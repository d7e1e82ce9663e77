package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/offhook/offhook/internal/kafka"
	"github.com/offhook/offhook/internal/simulator"
	"github.com/offhook/offhook/internal/truth"
)

// trafficFlags shape the simulated traffic; their defaults are those of simulator.Default.
type trafficFlags struct {
	Seed       uint64  `default:"1" help:"The same seed makes the same traffic."`
	Users      int     `default:"200" help:"Users; at least 3."`
	Groups     int     `default:"20" help:"Groups; 0: all messages go to persons."`
	GroupSize  int     `default:"10" help:"Members of a group."`
	Devices    int     `default:"3" help:"Most connections of a user."`
	Nodes      int     `default:"3" help:"Gateway nodes."`
	Churn      float64 `default:"50" help:"Connection events a second."`
	Rate       float64 `default:"100" help:"Messages a second."`
	GroupShare float64 `default:"0.5" help:"Share of the messages that goes to groups, 0 to 1."`
	Zipf       float64 `help:"Exponent, above 1, of Zipf's law: groups have 2 members up to --group-size, and some groups and senders are far busier than others; 0: all are alike."`
}

// upsetFlags are what goes wrong at the traffic's source.
type upsetFlags struct {
	Crashes   float64       `help:"Gateway nodes that crash a minute: their connections go without a goodbye, the node says that it starts, users come back on others."`
	Late      float64       `help:"Share of the connection events that come up to 5s late, 0 to 1."`
	Doubled   float64       `help:"Share of the records that are written twice, at once or up to 3s later, 0 to 1."`
	Skew      time.Duration `help:"How far the gateway nodes' clocks are apart at most."`
	Heartbeat time.Duration `help:"Longest time between two signs of life of an open connection, but for a few that fall silent; 0: hardly any signs."`
}

// given is the first that is given, as a flag; "": none.
func (u upsetFlags) given() string {
	switch {
	case u.Crashes != 0:
		return "--crashes"
	case u.Late != 0:
		return "--late"
	case u.Doubled != 0:
		return "--doubled"
	case u.Skew != 0:
		return "--skew"
	case u.Heartbeat != 0:
		return "--heartbeat"
	}
	return ""
}

func (t trafficFlags) config() simulator.Config {
	cfg := simulator.Default()
	cfg.Seed, cfg.Users, cfg.Groups, cfg.GroupSize, cfg.Devices, cfg.Nodes = t.Seed, t.Users, t.Groups, t.GroupSize, t.Devices, t.Nodes
	cfg.Churn, cfg.Rate, cfg.GroupShare, cfg.Zipf = t.Churn, t.Rate, t.GroupShare, t.Zipf
	return cfg
}

type simulateCommand struct {
	Brokers          []string `default:"localhost:9092" help:"host:port of some brokers, comma-separated."`
	TLS              bool     `name:"tls" help:"Speak TLS."`
	TLSCAFile        string   `name:"tls-ca-file" help:"PEM file of the authorities that sign the brokers' certificates." placeholder:"FILE"`
	TLSCertFile      string   `name:"tls-cert-file" help:"PEM file of the client certificate." placeholder:"FILE"`
	TLSKeyFile       string   `name:"tls-key-file" help:"PEM file of its key." placeholder:"FILE"`
	SASLMechanism    string   `name:"sasl-mechanism" enum:",PLAIN,SCRAM-SHA-256,SCRAM-SHA-512" default:"" help:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512."`
	SASLUsername     string   `name:"sasl-username" help:"User."`
	SASLPasswordFile string   `name:"sasl-password-file" help:"File that holds its password." placeholder:"FILE"`

	ConnectionsTopic string        `default:"im.connections" help:"Topic of the connection events; it must exist."`
	MessagesTopic    string        `default:"im.messages" help:"Topic of the messages; it must exist."`
	RunName          string        `name:"run" help:"Part of every uid and client_msg_no; made of the time where it is not given." placeholder:"NAME"`
	Traffic          trafficFlags  `embed:""`
	Upsets           upsetFlags    `embed:""`
	Duration         time.Duration `help:"End after this time; 0: run until a signal, or the counts below are reached."`
	Connections      int64         `help:"End after so many connection records; 0: no bound."`
	Messages         int64         `help:"End after so many messages; 0: no bound."`
	Settle           time.Duration `default:"2s" help:"Pause before the first message, in which offhook takes in who is online."`
	Truth            string        `help:"Write what must arrive to this file." placeholder:"FILE"`
	Acks             string        `help:"Write topic, partition, offset and FNV-1a hash of each record that Kafka has acknowledged to this file, and go on for as long as brokers are away: records that fail are counted." placeholder:"FILE"`
}

// fits refuses flags that do not go together.
func (f simulateCommand) fits() error {
	if f.Truth == "" {
		return nil
	}
	if flag := f.Upsets.given(); flag != "" {
		return &settingsError{name: "--truth", problem: "cannot be true with " + flag + ": nobody knows what must arrive then", example: "--truth without " + flag}
	}
	if f.Acks != "" {
		return &settingsError{name: "--truth", problem: "cannot be true with --acks: a record that is tried again for that long may be written twice", example: "--truth without --acks"}
	}
	return nil
}

// Run is for kong.
func (f simulateCommand) Run(c *call) error {
	cfg := f.Traffic.config()
	cfg.Brokers, cfg.ConnectionsTopic, cfg.MessagesTopic, cfg.Run = f.Brokers, f.ConnectionsTopic, f.MessagesTopic, f.RunName
	cfg.Crashes, cfg.Late, cfg.Doubled, cfg.Skew, cfg.Heartbeat = f.Upsets.Crashes, f.Upsets.Late, f.Upsets.Doubled, f.Upsets.Skew, f.Upsets.Heartbeat
	cfg.Duration, cfg.Connections, cfg.Messages, cfg.Settle = f.Duration, f.Connections, f.Messages, f.Settle
	cfg.SASLMechanism, cfg.SASLUsername = f.SASLMechanism, f.SASLUsername
	var err error
	if cfg.TLS, err = (kafka.Config{TLS: f.TLS, CAFile: f.TLSCAFile, CertFile: f.TLSCertFile, KeyFile: f.TLSKeyFile}).TLSConfig(); err != nil {
		return err
	}
	if f.SASLPasswordFile != "" {
		if cfg.SASLPassword, err = readSecret(f.SASLPasswordFile); err != nil {
			return fmt.Errorf("read --sasl-password-file: %w", err)
		}
	}
	if err := f.fits(); err != nil {
		return err
	}
	deps := simulator.Deps{Progress: c.stderr}
	finish := func() error { return nil }
	if f.Acks != "" {
		file, err := os.Create(f.Acks)
		if err != nil {
			return fmt.Errorf("create --acks: %w", err)
		}
		deps.Acks, cfg.Persist = file, true
		finish = file.Close
	}
	if f.Truth != "" {
		file, err := os.Create(f.Truth)
		if err != nil {
			return fmt.Errorf("create --truth: %w", err)
		}
		writer := truth.NewWriter(file)
		deps.Truth = writer
		finish = func() error { return errors.Join(writer.Flush(), file.Close()) }
	}
	summary, err := simulator.Run(c.ctx, cfg, deps)
	if err := errors.Join(err, finish()); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.stdout, summary)
	return err
}
