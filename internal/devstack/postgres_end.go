package devstack

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// endScript waits for the end of its standard input, which comes when the process that holds the other
// end has ended, however it did. Then it ends the server $1, if that is still the one whose
// process id stands in the file $2, waits ten seconds at most, and deletes what else is named.
const endScript = `
cat >/dev/null
pid=$1 file=$2
shift 2
[ "$(head -n 1 "$file" 2>/dev/null)" = "$pid" ] && kill -QUIT "$pid" 2>/dev/null
tries=0
while kill -0 "$pid" 2>/dev/null && [ $tries -lt 100 ]; do sleep 0.1; tries=$((tries + 1)); done
rm -rf "$@"
`

// EndWithProcess has the server ended, and its files and the given directories deleted, once this process
// has ended: for a cluster that nobody can be relied on to remove. The server must run, and not be started
// again. Stop and Remove may be called all the same.
func (pg *Postgres) EndWithProcess(dirs ...string) error {
	if pg.endPipe != nil {
		return errors.New("end Postgres with this process: it was said before")
	}
	input, hold, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("end Postgres with this process: %w", err)
	}
	args := append([]string{"-c", endScript, "sh", strconv.Itoa(pg.PID()), pg.dataPath("postmaster.pid"), pg.home, pg.options.Dir}, dirs...)
	cmd := exec.Command("/bin/sh", args...)
	cmd.Stdin = input
	// A Ctrl-C at the terminal is not meant for it, and its own directory may be one that goes.
	cmd.SysProcAttr, cmd.Dir = &syscall.SysProcAttr{Setpgid: true}, "/"
	err = cmd.Start()
	_ = input.Close() // the shell has its own copy
	if err != nil {
		_ = hold.Close() // nobody reads it
		return fmt.Errorf("end Postgres with this process: %w", err)
	}
	pg.endPipe = hold // and so it stays open; nobody waits for the shell, which ends last
	return nil
}
