package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/process"
)

const (
	// upWithin bounds the wait for containers to be healthy: a forwarder that comes back waits
	// for the leases of the one that was killed.
	upWithin = 3 * time.Minute
	poll     = 500 * time.Millisecond
	// projectLabel is what compose puts on everything that it makes.
	projectLabel = "com.docker.compose.project"
)

// project is the compose file with names and ports of its own.
type project struct {
	compose []string
	waits   bool // compose up can
	name    string
	env     []string
	log     *logger
	model   model
	// services are those that are started, with their numbers.
	services map[string]int
	scaled   map[string]int

	http, grpc    string // URL and host:port, of the proxy
	endpointAdmin string // URL
	nats          string // URL
	jaeger        string // URL; empty: it is left out
	s3            process.S3
}

// newProject chooses names and ports, and finds out what can be started.
func newProject(ctx context.Context, log *logger) (*project, error) {
	compose, err := composeCommand(ctx)
	if err != nil {
		return nil, err
	}
	p := &project{compose: compose, waits: waits(ctx, compose), log: log, name: fmt.Sprintf("waybill-test-%d", os.Getpid()), scaled: map[string]int{}}
	log.say("with %s", strings.Join(compose, " "))
	ports, err := freePorts("WAYBILL_HTTP_PORT", "WAYBILL_GRPC_PORT", "ENDPOINT_ADMIN_PORT", "JAEGER_PORT", "OTLP_PORT", "TEST_S3_PORT", "TEST_NATS_PORT")
	if err != nil {
		return nil, err
	}
	p.env = []string{"COMPOSE_PROJECT_NAME=" + p.name, "WAYBILL_IMAGE=waybill:test"}
	for name, port := range ports {
		p.env = append(p.env, fmt.Sprintf("%s=%d", name, port))
	}
	local := func(name string) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[name])) }
	p.http, p.grpc = "http://"+local("WAYBILL_HTTP_PORT"), local("WAYBILL_GRPC_PORT")
	p.endpointAdmin, p.nats = "http://"+local("ENDPOINT_ADMIN_PORT"), "nats://"+local("TEST_NATS_PORT")
	config, err := p.run(ctx, askTimeout, "config")
	if err != nil {
		return nil, err
	}
	if p.model, err = readModel(config); err != nil {
		return nil, err
	}
	p.s3 = s3Of(p.model.Services["forwarder"].Environment, "http://"+local("TEST_S3_PORT"))
	if err := p.chooseServices(ctx); err != nil {
		return nil, err
	}
	if p.services["jaeger"] > 0 {
		p.jaeger = "http://" + local("JAEGER_PORT")
	}
	return p, nil
}

// s3Of is how the archive of a forwarder is reached from the host.
func s3Of(env map[string]string, endpoint string) process.S3 {
	c := process.DefaultS3()
	c.S3Endpoint, c.S3Region, c.S3Bucket = endpoint, env["WAYBILL_S3_REGION"], env["WAYBILL_S3_BUCKET"]
	c.S3AccessKey, c.S3SecretKey, c.S3PathStyle = env["WAYBILL_S3_ACCESS_KEY"], env["WAYBILL_S3_SECRET_KEY"], true
	return c
}

// The ports to choose from are below those that the kernel gives to connections, 32,768 and up on Linux: that of a container
// that is killed is to be free when it is started again.
const firstPort, lastPort = 20_000, 32_000

// freePorts returns a port of 127.0.0.1 for each name. All are held until all are chosen.
func freePorts(names ...string) (map[string]int, error) {
	out := map[string]int{}
	for _, name := range names {
		var l net.Listener
		var err error
		for try := 0; l == nil; try++ {
			port := firstPort + rand.IntN(lastPort-firstPort)
			if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err != nil && try == 100 {
				return nil, fmt.Errorf("choose a port: %w", err)
			}
		}
		defer func() { _ = l.Close() }() // it was only held
		out[name] = l.Addr().(*net.TCPAddr).Port
	}
	return out, nil
}

// chooseServices leaves out what no other service waits for and whose image cannot be had. Of all
// other images each must be there.
func (p *project) chooseServices(ctx context.Context) error {
	built, from, err := p.model.built()
	if err != nil {
		return err
	}
	p.services = map[string]int{}
	for _, name := range p.model.names() {
		p.services[name] = 1
	}
	var lacking []string
	for _, image := range from {
		if !haveImage(ctx, p.log, image) {
			lacking = append(lacking, image)
		}
	}
	foreign := p.model.foreign(built)
	for _, name := range slices.Sorted(maps.Keys(foreign)) {
		switch {
		case haveImage(ctx, p.log, foreign[name]):
		case p.model.needed(name):
			lacking = append(lacking, foreign[name])
		default:
			banner(p.log.w, "WITHOUT "+strings.ToUpper(name), "the image "+foreign[name]+" is not there and cannot be pulled; all else is tested")
			delete(p.services, name)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err() // nothing is known of the images
	}
	if len(lacking) > 0 {
		return &impossibleError{
			"these images are not there and cannot be pulled: " + strings.Join(lacking, ", "),
			"give the engine access to a registry, or images of these names, or name others of yours for GO_IMAGE and BASE_IMAGE",
		}
	}
	return nil
}

// run runs a compose command of the project.
func (p *project) run(ctx context.Context, timeout time.Duration, args ...string) ([]byte, error) {
	all := append(p.compose[:len(p.compose):len(p.compose)], "-f", "compose.yaml", "-f", "test/compose/override.yaml")
	return command(ctx, timeout, p.env, append(all, args...)...)
}

// up starts what is not there yet, in the numbers wanted, and waits until all of it is healthy.
func (p *project) up(ctx context.Context) error {
	args := []string{"up", "--detach"}
	if p.waits {
		args = append(args, "--wait")
	}
	for _, name := range slices.Sorted(maps.Keys(p.scaled)) {
		args = append(args, "--scale", fmt.Sprintf("%s=%d", name, p.scaled[name]))
	}
	if _, err := p.run(ctx, commandTimeout, append(args, slices.Sorted(maps.Keys(p.services))...)...); err != nil {
		return err
	}
	return p.wait(ctx)
}

// scale changes how many containers of a service there are, at the next up.
func (p *project) scale(service string, n int) { p.services[service], p.scaled[service] = n, n }

// wait waits until there is every container, and each is healthy or has done its work.
func (p *project) wait(ctx context.Context) error {
	for deadline := time.Now().Add(upWithin); ; {
		have, err := p.containers(ctx)
		if err != nil {
			return err
		}
		problem := missing(p.services, have)
		if problem == "" {
			return nil
		}
		failed := slices.ContainsFunc(have, container.failed)
		if failed || time.Now().After(deadline) {
			return fmt.Errorf("not all containers are healthy: %s", problem)
		}
		if err := pause(ctx, poll); err != nil {
			return err
		}
	}
}

// containers are those of the project, stopped ones too.
func (p *project) containers(ctx context.Context) ([]container, error) {
	ids, err := p.made(ctx, "docker", "ps", "--all", "--quiet", "--no-trunc")
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	out, err := command(ctx, askTimeout, nil, append([]string{"docker", "inspect"}, ids...)...)
	if err != nil {
		return nil, err
	}
	var all []inspected
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("read docker inspect: %w", err)
	}
	return containersOf(all), nil
}

// of are the running containers of a service.
func (p *project) of(ctx context.Context, service string) ([]container, error) {
	all, err := p.containers(ctx)
	if err != nil {
		return nil, err
	}
	running := slices.DeleteFunc(all, func(c container) bool { return c.Service != service || c.Status != "running" })
	if len(running) == 0 {
		return nil, fmt.Errorf("no container of %s runs", service)
	}
	return running, nil
}

// made lists what a docker command knows of the project.
func (p *project) made(ctx context.Context, args ...string) ([]string, error) {
	out, err := command(ctx, askTimeout, nil, append(args, "--filter", "label="+projectLabel+"="+p.name)...)
	return strings.Fields(string(out)), err
}

// kill ends a container with SIGKILL. The engine does not start it again by itself: that is for
// containers that ended on their own.
func (p *project) kill(ctx context.Context, c container) error {
	_, err := command(ctx, askTimeout, nil, "docker", "kill", c.ID)
	return err
}

// start starts a container again, and waits until it is healthy.
func (p *project) start(ctx context.Context, c container) error {
	if _, err := command(ctx, askTimeout, nil, "docker", "start", c.ID); err != nil {
		return err
	}
	for deadline := time.Now().Add(upWithin); ; {
		all, err := p.containers(ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(o container) bool { return o.ID == c.ID })
		if i < 0 || time.Now().After(deadline) {
			return fmt.Errorf("%v is not healthy again", c)
		}
		if all[i].settled() {
			return nil
		}
		if err := pause(ctx, poll); err != nil {
			return err
		}
	}
}

// waybill runs the operator's command in a container that knows both servers.
func (p *project) waybill(ctx context.Context, args ...string) ([]byte, error) {
	in, err := p.of(ctx, "ingest")
	if err != nil {
		return nil, err
	}
	return command(ctx, askTimeout, nil, append([]string{"docker", "exec", in[0].ID, "waybill"}, args...)...)
}

// down stops and removes the containers; what they stored stays.
func (p *project) down(ctx context.Context) error {
	if _, err := p.run(ctx, commandTimeout, "down"); err != nil {
		return err
	}
	left, err := p.containers(ctx)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("after down there still are %v", left)
	}
	return err
}

// remove takes down everything, and checks that nothing is left.
func (p *project) remove(ctx context.Context) error {
	_, failure := p.run(ctx, commandTimeout, "down", "--volumes", "--remove-orphans", "--timeout", "10")
	for _, list := range [][]string{{"docker", "ps", "--all", "--quiet"}, {"docker", "volume", "ls", "--quiet"}, {"docker", "network", "ls", "--quiet"}} {
		left, err := p.made(ctx, list...)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%s still lists %s", strings.Join(list, " "), strings.Join(left, ", "))
		}
		failure = errors.Join(failure, err)
	}
	return failure
}

// logs are the last lines of each container.
func (p *project) logs(ctx context.Context) string {
	out, err := p.run(ctx, askTimeout, "logs", "--no-color", "--tail", "30")
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// pause fails if ctx ends before d is over.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
