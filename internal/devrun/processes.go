package devrun

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/supervisor"
)

// processStop is how long one of Waybill's processes may take to stop: above its own
// bound, so that it is not killed while it hands over what it holds.
const processStop = 25 * time.Second

// command is a command of this binary, with settings in its environment: arguments are
// readable by every user.
func (s *Stack) command(name string, settings map[string]string, args ...string) devstack.Command {
	c := devstack.DefaultCommand(name, s.config.Executable, args...)
	c.LogPath = filepath.Join(s.config.Dir, "logs", name+".log")
	c.StopTimeout = processStop
	queue := s.config.Queue
	c.Env = append(shareProcessors(), []string{
		"WAYBILL_LOG_FORMAT=text", "WAYBILL_ARCHIVE_LINGER=" + s.config.ArchiveLinger.String(),
		"WAYBILL_QUEUE_REPLICAS=" + strconv.Itoa(queue.Replicas), "WAYBILL_LEASE_TTL=" + queue.LeaseTTL.String(),
		"WAYBILL_QUEUE_BYTES=" + strconv.FormatInt(queue.MaxBytes, 10),
	}...)
	c.Env = append(c.Env, s.traces.defaults()...)
	c.Env = append(append(c.Env, s.config.Env...), s.traces.env(s.config.Env)...)
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		c.Env = append(c.Env, key+"="+settings[key]) // of two with one name the last counts
	}
	c.Env = append(c.Env, s.envOf(name)...)
	return c
}

// shareProcessors gives each process half of the processors, unless GOMAXPROCS says otherwise. They are many here, and
// next to Postgres: each would look for work on all processors, and take them from those that have some
// (docs/performance.md has the figures).
func shareProcessors() []string {
	if os.Getenv("GOMAXPROCS") != "" {
		return nil
	}
	return []string{"GOMAXPROCS=" + strconv.Itoa(max(1, runtime.GOMAXPROCS(0)/2))}
}

func (s *Stack) envOf(name string) []string {
	if s.config.EnvOf == nil {
		return nil
	}
	return s.config.EnvOf(name)
}

// addProcess adds one of Waybill's three processes, of which there may be several.
func (s *Stack) addProcess(group *[]member, kind string, nth int, settings map[string]string) error {
	name := fmt.Sprintf("%s-%d", kind, nth)
	admin, err := s.ports.addr(name + "-admin")
	if err != nil {
		return err
	}
	all := s.environment()
	if err := s.redirect(name, all); err != nil {
		return err
	}
	maps.Copy(all, settings)
	all["WAYBILL_ID"], all["WAYBILL_ADMIN_ADDR"] = name, admin
	command := s.command(name, all, kind)
	command.Ready = devstack.HTTPReady("http://" + admin + "/livez")
	s.admins[name] = admin
	where := "admin " + admin
	if addr := settings["WAYBILL_HTTP_ADDR"]; addr != "" {
		where = "http " + addr + ", grpc " + settings["WAYBILL_GRPC_ADDR"] + ", " + where
	}
	s.add(group, name, where, supervisor.NewProcess(command))
	return nil
}

// environment is what each process reads of what it knows.
func (s *Stack) environment() map[string]string {
	env := map[string]string{
		"WAYBILL_DATABASE_URL": s.DatabaseURL, "WAYBILL_NATS_URL": s.NATSURL,
		"WAYBILL_LANES":            strconv.Itoa(s.config.Lanes),
		"WAYBILL_INGRESS_ENDPOINT": s.IngressEndpoint,
	}
	if s.S3.S3Bucket == "" {
		return env
	}
	maps.Copy(env, map[string]string{
		"WAYBILL_S3_ENDPOINT": s.S3.S3Endpoint, "WAYBILL_S3_REGION": s.S3.S3Region,
		"WAYBILL_S3_BUCKET": s.S3.S3Bucket, "WAYBILL_S3_PREFIX": s.S3.S3Prefix,
		"WAYBILL_S3_PATH_STYLE": strconv.FormatBool(s.S3.S3PathStyle),
		"WAYBILL_S3_CHECKSUMS":  s.S3.S3Checksums,
	})
	if s.S3.S3AccessKey != "" {
		env["WAYBILL_S3_ACCESS_KEY"], env["WAYBILL_S3_SECRET_KEY"] = s.S3.S3AccessKey, s.S3.S3SecretKey
	}
	if s.ownS3 {
		env["WAYBILL_S3_CREATE_BUCKET"] = "true"
	}
	return env
}

// redirect lets a process reach the servers the way that Config.Via says.
func (s *Stack) redirect(process string, env map[string]string) error {
	if s.config.Via == nil {
		return nil
	}
	for server, key := range map[string]string{
		"postgres": "WAYBILL_DATABASE_URL", "nats": "WAYBILL_NATS_URL",
		"s3": "WAYBILL_S3_ENDPOINT", "endpoint": "WAYBILL_INGRESS_ENDPOINT",
	} {
		if env[key] == "" {
			continue // there is none
		}
		all := strings.Split(env[key], ",") // NATS servers only
		for i := range all {
			name := server
			if len(all) > 1 {
				name = fmt.Sprintf("%s-%d", server, i+1)
			}
			var err error
			if all[i], err = s.via(process, name, all[i]); err != nil {
				return err
			}
		}
		env[key] = strings.Join(all, ",")
	}
	return nil
}

// via is an address, or a URL, with the way that Config.Via says in it.
func (s *Stack) via(process, server, address string) (string, error) {
	if s.config.Via == nil {
		return address, nil
	}
	addr := address
	if u, err := url.Parse(addr); err == nil && u.Host != "" {
		addr = u.Host
	}
	via, err := s.config.Via(process, server, addr)
	if err != nil {
		return "", fmt.Errorf("way of %s to %s: %w", process, server, err)
	}
	return strings.Replace(address, addr, via, 1), nil
}

func (s *Stack) addProcesses() error {
	for i := range s.config.Ingests {
		httpAddr, grpcAddr, err := s.ingestAddrs(i + 1)
		if err != nil {
			return err
		}
		s.HTTP, s.GRPC = append(s.HTTP, "http://"+httpAddr), append(s.GRPC, grpcAddr)
		settings := map[string]string{"WAYBILL_HTTP_ADDR": httpAddr, "WAYBILL_GRPC_ADDR": grpcAddr}
		if err := s.addProcess(&s.ingests, "ingest", i+1, settings); err != nil {
			return err
		}
	}
	for i := range s.config.Forwarders {
		if err := s.addProcess(&s.forwarders, "forwarder", i+1, nil); err != nil {
			return err
		}
	}
	for i := range s.config.Janitors {
		if err := s.addProcess(&s.janitors, "janitor", i+1, nil); err != nil {
			return err
		}
	}
	return nil
}

// checkAddrs says clearly that the first ingest's addresses are taken, if they are.
func (s *Stack) checkAddrs() error {
	if s.config.FreePorts {
		return nil
	}
	if err := mustBeFree("--http-addr", s.config.HTTPAddr); err != nil {
		return err
	}
	return mustBeFree("--grpc-addr", s.config.GRPCAddr)
}

// ingestAddrs are the configured ones for the first ingest and free ones for the others.
func (s *Stack) ingestAddrs(nth int) (httpAddr, grpcAddr string, err error) {
	if nth == 1 && !s.config.FreePorts {
		return s.config.HTTPAddr, s.config.GRPCAddr, nil
	}
	for _, a := range []struct {
		name, configured string
		addr             *string
	}{{"http", s.config.HTTPAddr, &httpAddr}, {"grpc", s.config.GRPCAddr, &grpcAddr}} {
		port, err := s.ports.port(fmt.Sprintf("ingest-%d-%s", nth, a.name))
		if err != nil {
			return "", "", err
		}
		host, _, err := net.SplitHostPort(a.configured)
		if err != nil {
			return "", "", err
		}
		*a.addr = net.JoinHostPort(host, strconv.Itoa(port))
	}
	return httpAddr, grpcAddr, nil
}
