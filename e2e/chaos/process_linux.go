package chaos

import (
	"os/exec"
	"syscall"
)

// endWithParent has the kernel end the process when the run's process is gone, and keeps a Ctrl-C for the run alone.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
