package devrun

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/supervisor"
)

// natsPorts are those of one server of a cluster.
type natsPorts struct{ client, http, cluster int }

// addNATSCluster adds a cluster of nats-servers, each a process of its own: nats-1 and so on.
func (s *Stack) addNATSCluster() error {
	all := make([]natsPorts, s.config.NATSServers)
	var urls []string
	for i := range all {
		for suffix, port := range map[string]*int{"": &all[i].client, "-http": &all[i].http, "-cluster": &all[i].cluster} {
			var err error
			if *port, err = s.ports.port(natsName(i) + suffix); err != nil {
				return err
			}
		}
		urls = append(urls, "nats://"+loopback(all[i].client))
	}
	s.NATSURL = strings.Join(urls, ",")
	for i := range all {
		if err := s.addNATSMember(i, all); err != nil {
			return err
		}
	}
	return nil
}

func natsName(i int) string { return fmt.Sprintf("nats-%d", i+1) }

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func (s *Stack) addNATSMember(i int, all []natsPorts) error {
	name, own := natsName(i), all[i]
	args := []string{
		"nats-server", "--name", name, "--dir", filepath.Join(s.config.Dir, name),
		"--port", strconv.Itoa(own.client), "--http-port", strconv.Itoa(own.http), "--cluster-port", strconv.Itoa(own.cluster),
	}
	for j, other := range all {
		if j == i {
			continue
		}
		route, err := s.via(name, fmt.Sprintf("routes-%d", j+1), loopback(other.cluster))
		if err != nil {
			return err
		}
		args = append(args, "--route", route)
	}
	command := s.command(name, nil, args...)
	// Not all of its health: that needs the others, which may be away.
	command.Ready = devstack.HTTPReady(fmt.Sprintf("http://%s/healthz?js-enabled-only=true", loopback(own.http)))
	s.add(&s.servers, name, loopback(own.client)+", monitoring "+loopback(own.http), supervisor.NewProcess(command))
	return nil
}
