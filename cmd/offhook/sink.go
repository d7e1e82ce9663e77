package main

type sinkCommand struct{}

// Run is for kong.
func (sinkCommand) Run(c *call) error { return serveParts(c, partSink) }
