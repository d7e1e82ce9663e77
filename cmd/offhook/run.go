package main

type runCommand struct{}

// Run is for kong.
func (runCommand) Run(c *call) error { return serveParts(c, partProcessor, partSink) }
