package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

// offhook is the path of the offhook binary that the tests run.
var offhook string

// atOnce is how many tests run side by side where -parallel does not say it: they wait for timeouts of groups far more
// than they compute, and Go's default is the number of processors.
const atOnce = "12"

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "offhook-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a directory for the binary:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	offhook = filepath.Join(dir, "offhook")
	build := exec.Command("go", "build", "-o", offhook, "github.com/offhook/offhook/cmd/offhook")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build the binary:", err)
		return 1
	}
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said {
		if err := flag.Set("test.parallel", atOnce); err != nil {
			fmt.Fprintln(os.Stderr, "set -parallel:", err)
			return 1
		}
	}
	code := m.Run()
	if code == 0 {
		// sarama's metrics start a goroutine for the life of the process.
		if err := goleak.Find(goleak.IgnoreAnyFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}
