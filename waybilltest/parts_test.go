package waybilltest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// stub is a test that may fail, with cleanups of its own.
type stub struct {
	testing.TB
	fatal, errors string
	cleanups      []func()
}

func (s *stub) Cleanup(f func()) { s.cleanups = append(s.cleanups, f) }

func (s *stub) Errorf(format string, args ...any) { s.errors += fmt.Sprintf(format, args...) }

func (s *stub) Fatalf(format string, args ...any) {
	s.fatal = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// A process that ends by itself ends the waiting of a test at once, and is told of when the test ends.
func TestProcessThatEnds(t *testing.T) {
	t.Parallel()
	s := &stub{TB: t}
	w := Start(s)
	w.parts.run("engine", func(context.Context) error { return errors.New("it broke") })
	began := time.Now()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.Expect(s, Filter{}, 1, time.Hour)
	}()
	<-done
	if took := time.Since(began); took > time.Minute {
		t.Errorf("the test waited for %v", took)
	}
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		s.cleanups[i]()
	}
	for what, text := range map[string]string{"the failure": s.fatal, "the end": s.errors} {
		if !strings.Contains(text, "engine ended by itself: it broke") {
			t.Errorf("%s says %q", what, text)
		}
	}
}

func TestGivenServerOfTheEnvironment(t *testing.T) {
	for _, c := range []struct {
		env       map[string]string
		url, from string
	}{
		{nil, "", databaseEnv},
		{map[string]string{"PGUSER": "u"}, "", databaseEnv},
		{map[string]string{databaseEnv: "postgres://h/d", "PGHOST": "other"}, "postgres://h/d", databaseEnv},
	} {
		url, from, err := givenServer(func(name string) string { return c.env[name] })
		if err != nil || url != c.url || from != c.from {
			t.Errorf("%v: %q of %q, %v", c.env, url, from, err)
		}
	}
}
