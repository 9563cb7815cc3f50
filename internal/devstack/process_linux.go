package devstack

import "syscall"

// setDeathSignal has the kernel send the signal to the child when its parent dies.
func setDeathSignal(attr *syscall.SysProcAttr, s syscall.Signal) { attr.Pdeathsig = s }
