package supervisor

import (
	"context"
	"fmt"

	"github.com/waybillhq/waybill/internal/devstack"
)

// Process is a part that is a program of its own.
type Process struct {
	command devstack.Command
	process *devstack.Process // of the newest successful start
}

var _ Part = (*Process)(nil)

// NewProcess returns a part that runs command each time it is started.
func NewProcess(command devstack.Command) *Process { return &Process{command: command} }

// Start implements Part.
func (p *Process) Start(ctx context.Context) (int, error) {
	process, err := devstack.StartProcess(ctx, p.command)
	if err != nil {
		return 0, err
	}
	p.process = process
	return process.PID(), nil
}

// Done implements Part.
func (p *Process) Done() <-chan struct{} { return p.process.Done() }

// Why implements Part.
func (p *Process) Why() string {
	return fmt.Sprintf("%v (its log is %s)", p.process.Err(), p.command.LogPath)
}

// Stop implements Part.
func (p *Process) Stop() error { return p.process.Stop() }
