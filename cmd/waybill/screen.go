package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// plainEvery is the shortest time between two live lines where nobody's terminal rewrites
// them.
const plainEvery = 5 * time.Second

// screen prints lines, and below them one that is rewritten in place; without a terminal
// the latter becomes an ordinary line now and then. It is safe for concurrent use.
type screen struct {
	out      io.Writer
	terminal bool

	mu    sync.Mutex // guards what follows
	shown string     // the live line on the terminal, or the newest one printed
	at    time.Time  // when it was printed
}

func newScreen(con *console) *screen { return &screen{out: con.out, terminal: con.terminal} }

const (
	// clear goes to the beginning of the line and clears it.
	clear = "\r\x1b[K"
	// A line that wrapped could not be rewritten: what is beyond the margin is cut off.
	noWrap, wrap = "\x1b[?7l", "\x1b[?7h"
)

// line prints a line for good. Errors of printing are of no consequence: the work goes on.
func (s *screen) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.terminal {
		_, _ = fmt.Fprintln(s.out, text)
		return
	}
	_, _ = fmt.Fprint(s.out, clear+text+"\n"+s.shown)
}

// live shows text in the line that is rewritten.
func (s *screen) live(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminal {
		s.shown = noWrap + text + wrap
		_, _ = fmt.Fprint(s.out, clear+s.shown)
		return
	}
	if text != s.shown && time.Since(s.at) >= plainEvery {
		s.shown, s.at = text, time.Now()
		_, _ = fmt.Fprintln(s.out, text)
	}
}

// end leaves the live line standing, if there is one.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminal && s.shown != "" {
		_, _ = fmt.Fprintln(s.out)
	}
	s.shown = ""
}
