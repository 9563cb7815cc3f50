package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/netfault"
)

// healthTimeout is below the time that container runtimes give a check by default.
const healthTimeout = 3 * time.Second

type healthcheckCommand struct {
	URL string `arg:"" help:"What to ask, such as http://127.0.0.1:9090/readyz."`
}

// Validate refuses what is no URL.
func (c *healthcheckCommand) Validate() error {
	if c.URL == "" {
		return errors.New("<url>: is missing; want one such as http://127.0.0.1:9090/readyz")
	}
	if u, err := url.Parse(c.URL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%q: want a URL such as http://127.0.0.1:9090/readyz", c.URL)
	}
	return nil
}

// Run fails unless the URL answers with 2xx in time.
func (c *healthcheckCommand) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, nil)
	if err != nil {
		return fmt.Errorf("healthcheck: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if reason, ok := netfault.Reason(err); ok {
		return fmt.Errorf("healthcheck: %s: %s; start the process, or give the URL of its admin address", c.URL, reason)
	}
	if err != nil {
		if reason, ok := netfault.Mismatch(err.Error()); ok {
			err = fmt.Errorf("%s: %s", c.URL, reason)
		}
		return fmt.Errorf("healthcheck: %w", err)
	}
	defer func() { _ = response.Body.Close() }() // what is wanted of it was read
	if response.StatusCode/100 == 2 {
		return nil
	}
	if response.StatusCode == http.StatusNotFound {
		return fmt.Errorf("healthcheck: %s is not there (%s); give /livez or /readyz of the process's admin address", c.URL, response.Status)
	}
	body, _ := io.ReadAll(io.LimitReader(response.Body, 1024)) // a part of it is better than none
	return fmt.Errorf("healthcheck: %s says %s: %s", c.URL, response.Status, strings.TrimSpace(string(body)))
}
