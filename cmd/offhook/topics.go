package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/offhook/offhook/internal/kafka"
)

type topicsCommand struct {
	Create topicsCreate `cmd:"" help:"Create those that are missing, and check all."`
	Check  topicsCheck  `cmd:"" help:"Check that they are there, have one number of partitions and the settings that offhook needs."`
}

type topicsCreate struct {
	Timeout time.Duration `default:"30s" help:"How long to wait for the brokers; 0: until a signal."`
}

type topicsCheck struct {
	Timeout time.Duration `default:"30s" help:"How long to wait for the brokers; 0: until a signal."`
}

// Run is for kong.
func (t topicsCreate) Run(c *call) error { return ensureTopics(c, true, t.Timeout) }

// Run is for kong.
func (t topicsCheck) Run(c *call) error { return ensureTopics(c, false, t.Timeout) }

func ensureTopics(c *call, create bool, timeout time.Duration) error {
	s, log, err := c.settings()
	if err != nil {
		return err
	}
	client, err := s.kafka().NewClient(log)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx := c.ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("the brokers of OFFHOOK_KAFKA_BROKERS did not answer within %v", timeout))
		defer cancel()
	}
	spec := s.spec()
	spec.Create = create
	owned, err := kafka.Ensure(ctx, client, spec, log)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	_, err = fmt.Fprintf(table, "TOPIC\tPARTITIONS\tID\n")
	for _, name := range spec.Topics.All() {
		_, e := fmt.Fprintf(table, "%s\t%d\t%x\n", name, owned.Partitions, owned.IDs[name])
		err = errors.Join(err, e)
	}
	return errors.Join(err, table.Flush())
}
