package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
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
	for _, part := range s.stack.Parts() {
		admin := s.stack.Admin(part.Name)
		if admin == "" {
			continue
		}
		wg.Go(func() {
			err := s.profile(ctx, fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", admin, seconds), load.Name, part.Name)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
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
	dir := filepath.Join(s.bench.config.Dir, "profiles")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	name := strings.ReplaceAll(benchName(s.Name+" "+stage+" "+process), "%", "") + ".pprof"
	return os.WriteFile(filepath.Join(dir, name), content, 0o644)
}
