package main

import (
	"os/exec"
	"syscall"
)

// dieWithTest has the kernel end the process when the test's process is gone: a run that `go test -timeout` ends calls
// no cleanup.
func dieWithTest(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
