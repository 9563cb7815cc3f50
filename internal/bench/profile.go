package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"time"
)

// startProfiles takes a CPU profile of each of Waybill's processes while a load is measured,
// if that is wanted. The returned function waits until they are written.
func (s *System) startProfiles(ctx context.Context, load Load) (wait func() error) {
	if !s.bench.config.Profile || s.stack == nil {
		return func() error { return nil }
	}
	seconds := max(1, int(load.For/time.Second)-1) // it ends within the window
	if load.Count > 0 {
		seconds = min(seconds, 5) // nobody knows how long it will be
	}
	var mu sync.Mutex // guards errs
	var errs []error
	var wg sync.WaitGroup
	took := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	if load.Transport == overEmitter { // the emitter is in this process
		wg.Go(func() { took(s.profileSelf(ctx, load.Name, time.Duration(seconds)*time.Second)) })
	}
	for _, part := range s.stack.Parts() {
		admin := s.stack.Admin(part.Name)
		if admin == "" {
			continue
		}
		wg.Go(func() {
			took(s.profile(ctx, fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", admin, seconds), load.Name, part.Name))
		})
	}
	return func() error {
		wg.Wait()
		return errors.Join(errs...)
	}
}

func (s *System) profile(ctx context.Context, url, stage, process string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("profile of %s: %w", process, err)
		}
	}()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	return s.keepProfile(stage, process, content)
}

// profileSelf profiles this process.
func (s *System) profileSelf(ctx context.Context, stage string, length time.Duration) error {
	var content bytes.Buffer
	if err := pprof.StartCPUProfile(&content); err != nil {
		return fmt.Errorf("profile of %s: %w", self, err)
	}
	pause(ctx, length)
	pprof.StopCPUProfile()
	return s.keepProfile(stage, self, content.Bytes())
}

func (s *System) keepProfile(stage, process string, content []byte) error {
	dir := filepath.Join(s.bench.config.Dir, "profiles")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	name := strings.ReplaceAll(benchName(s.Name+" "+stage+" "+process), "%", "") + ".pprof"
	return os.WriteFile(filepath.Join(dir, name), content, 0o644)
}
