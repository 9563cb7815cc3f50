package failpoint

import (
	"fmt"
	"strings"
	"time"
)

// What can be done at a point.
const (
	// Kill ends the process with SIGKILL.
	Kill = "kill"
	// Stop stops the process with SIGSTOP, until somebody continues it.
	Stop = "stop"
	// Lose makes Err report that the answer was lost, although the act was done.
	Lose = "lose"
)

// HitSuffix is what is added to the name of the file of an order that is carried out.
const HitSuffix = ".hit"

// StopSettles is above the time until all threads of a process that was stopped stand still.
const StopSettles = 20 * time.Millisecond

// Order says what to do at which hit of a point.
type Order struct {
	Point  string
	Action string
	Nth    int // from 1
}

// String is the encoding of the order.
func (o Order) String() string { return fmt.Sprintf("%s %s %d\n", o.Point, o.Action, o.Nth) }

// ParseOrder reads what String wrote.
func ParseOrder(text string) (Order, error) {
	var o Order
	if n, err := fmt.Sscanf(text, "%s %s %d", &o.Point, &o.Action, &o.Nth); n != 3 {
		return Order{}, fmt.Errorf("order %q: want a point, an action and a number: %w", strings.TrimSpace(text), err)
	}
	if o.Action != Kill && o.Action != Stop && o.Action != Lose {
		return Order{}, fmt.Errorf("order %q: want the action %s, %s or %s", strings.TrimSpace(text), Kill, Stop, Lose)
	}
	if o.Nth < 1 {
		return Order{}, fmt.Errorf("order %q: want a number from 1", strings.TrimSpace(text))
	}
	return o, nil
}
