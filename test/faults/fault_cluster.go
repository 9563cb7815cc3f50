package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/test/faults/proxy"
)

// monitoring asks a server of the cluster for a page of its monitoring.
func (s *system) monitoring(ctx context.Context, server, page string, into any) error {
	for _, p := range s.stack.Parts() {
		_, addr, ok := strings.Cut(p.Where, "monitoring ")
		if p.Name != server || !ok {
			continue
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+page, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }() // it was read
		return json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(into)
	}
	return fmt.Errorf("%s is no server of a cluster", server)
}

// killLeader kills the server that leads a group, with -9.
type killLeader struct {
	s      *system
	on     string
	leader string
}

// Groups whose leader can be killed.
const (
	metaGroup     = "the meta group"
	consumerGroup = "a consumer"
)

func (f *killLeader) inject(ctx context.Context) error {
	err := poll(ctx, startLimit, f.on+" has a leader", func(ctx context.Context) (err error) {
		f.leader, err = f.find(ctx)
		if err == nil && f.leader == "" {
			err = errors.New("it has none now")
		}
		return err
	})
	if err != nil {
		return err
	}
	return (&kill{f.s, f.leader}).inject(ctx)
}

func (f *killLeader) find(ctx context.Context) (string, error) {
	var group *jetstream.ClusterInfo
	switch f.on {
	case metaGroup:
		var page struct {
			Meta struct {
				Leader string `json:"leader"`
			} `json:"meta_cluster"`
		}
		err := f.s.monitoring(ctx, natsServers[0], "/jsz", &page)
		return page.Meta.Leader, err
	case consumerGroup:
		consumer, err := f.s.js.Consumer(ctx, pipeline.EventsStream, ingressSink+"-0")
		if err != nil {
			return "", err
		}
		group = consumer.CachedInfo().Cluster
	default:
		info, err := f.s.streamInfo(ctx, f.on)
		if err != nil {
			return "", err
		}
		group = info.Cluster
	}
	if group == nil {
		return "", errors.New("it is of no cluster")
	}
	return group.Leader, nil
}

func (f *killLeader) heal(ctx context.Context) error {
	if f.leader == "" {
		return nil
	}
	return f.s.awaitStart(ctx, f.leader)
}

func (f *killLeader) proof() (int, string) {
	if f.leader == "" {
		return 0, "leaders were killed"
	}
	return 1, "leader was killed: " + f.leader
}

// cutNode cuts a server of the cluster off from the others, and from its clients or not.
type cutNode struct {
	s       *system
	on      string
	clients bool
	fault   proxy.Fault
	alone   bool // the others no longer had it
}

func (f *cutNode) inject(ctx context.Context) error {
	f.set(f.fault)
	f.s.leave(ctx, f.on)
	return nil
}

func (f *cutNode) heal(ctx context.Context) error {
	f.alone = f.isAlone(ctx)
	f.set(proxy.Fault{Mode: proxy.Pass})
	return nil
}

func (f *cutNode) set(fault proxy.Fault) {
	number := strings.TrimPrefix(f.on, "nats-")
	for _, way := range f.s.ways.where(func(from, to string) bool {
		return from == f.on || to == "routes-"+number || f.clients && to == f.on
	}) {
		way.Set(fault)
	}
}

// isAlone asks another server whether the one that was cut off is missing.
func (f *cutNode) isAlone(ctx context.Context) bool {
	var page struct {
		Meta struct {
			Leader   string `json:"leader"`
			Replicas []struct {
				Name    string        `json:"name"`
				Current bool          `json:"current"`
				Offline bool          `json:"offline"`
				Active  time.Duration `json:"active"`
			} `json:"replicas"`
		} `json:"meta_cluster"`
	}
	for _, server := range natsServers {
		if server == f.on || f.s.monitoring(ctx, server, "/jsz", &page) != nil || page.Meta.Leader != server {
			continue
		}
		for _, r := range page.Meta.Replicas {
			if r.Name == f.on && (r.Offline || !r.Current || r.Active > time.Second) {
				return true
			}
		}
	}
	return false
}

func (f *cutNode) proof() (int, string) {
	n := 0
	if f.alone {
		n = 1
	}
	return n, "server was missing to the others: " + f.on
}

// leave moves the harness's own connection away from a server.
func (s *system) leave(ctx context.Context, server string) {
	for end := time.Now().Add(askTimeout); s.nc.ConnectedServerName() == server && time.Now().Before(end); sleep(ctx, 100*time.Millisecond) {
		_ = s.nc.ForceReconnect() // else it stays where it is, and waits
	}
}

// wipeNode kills a server of the cluster and deletes everything that it stored.
type wipeNode struct {
	s  *system
	on string
}

func (f *wipeNode) inject(ctx context.Context) error {
	if err := f.s.awaitStart(ctx, f.on); err != nil {
		return err
	}
	// What is on this server alone would be gone: a majority must have it.
	if err := poll(ctx, startLimit, "the cluster is whole", f.s.whole); err != nil {
		return err
	}
	f.s.watch.dies(f.on)
	if err := f.s.signal(f.on, syscall.SIGKILL); err != nil {
		return err
	}
	// One rename is faster than the supervisor.
	store, gone := filepath.Join(f.s.dir, f.on), filepath.Join(f.s.dir, f.on+"-deleted")
	if err := os.Rename(store, gone); err != nil {
		return fmt.Errorf("delete the store of %s: %w", f.on, err)
	}
	return os.RemoveAll(gone)
}

// whole reports what keeps the cluster from being able to lose a server.
func (s *system) whole(ctx context.Context) error {
	for _, name := range []string{pipeline.EventsStream, pipeline.ReceiptsStream} {
		info, err := s.streamInfo(ctx, name)
		if err != nil {
			return err
		}
		if info.Cluster == nil || len(info.Cluster.Replicas) != len(natsServers)-1 {
			return fmt.Errorf("%s has the replicas %+v", name, info.Cluster)
		}
		for _, r := range info.Cluster.Replicas {
			if !r.Current || r.Offline {
				return fmt.Errorf("%s is not up to date on %s", name, r.Name)
			}
		}
	}
	return nil
}

func (f *wipeNode) heal(ctx context.Context) error { return f.s.awaitStart(ctx, f.on) }
