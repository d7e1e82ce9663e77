package main

type processorCommand struct{}

// Run is for kong.
func (processorCommand) Run(c *call) error { return serveParts(c, partProcessor) }
