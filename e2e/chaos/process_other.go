//go:build !linux

package chaos

import "os/exec"

// endWithParent does nothing: other systems have no such service.
func endWithParent(*exec.Cmd) {}
