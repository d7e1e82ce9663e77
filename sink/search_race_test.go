//go:build race

package sink

const searchRaces = true
