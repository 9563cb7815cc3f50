package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/internal/endpoint"
)

// hour is a person who follows the page.
type hour struct {
	t   *testing.T // of the whole walk
	dir string
	env []string

	act  act
	left []scene // of the act

	first, third *program  // what runs in the foreground of these terminals
	second       *terminal // where everything else is typed
}

func newHour(t *testing.T) *hour {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	h := &hour{t: t, dir: t.TempDir(), env: []string{
		"WAYBILL_PORTS=free", "WAYBILL_ARCHIVE_LINGER=100ms", "OTEL_BSP_SCHEDULE_DELAY=200", "OTEL_TRACES_EXPORTER=", "OTEL_EXPORTER_OTLP_ENDPOINT=",
	}}
	if err := os.Mkdir(filepath.Join(h.dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"bin/waybill": path,
		// From here a missing S3 server can be built as from the checkout.
		"go.mod": mustAbs(t, "../../go.mod"), "internal": mustAbs(t, "../../internal"),
		"Makefile": mustAbs(t, "../../Makefile"),
	} {
		if err := os.Symlink(target, filepath.Join(h.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	h.second = openTerminal(t, h.dir, h.env)
	return h
}

// looking are the commands that change nothing, so that they may be typed again until they show what they
// are to. Beside these it is curl without -X.
var looking = regexp.MustCompile(`^(\. |bin/waybill (doctor|status|trace|lanes|audit|archive cat|deadletters (ls|show))\b)`)

func (s scene) looks() bool {
	return !slices.ContainsFunc(s.commands, func(c string) bool {
		return !looking.MatchString(c) && (!strings.HasPrefix(c, "curl ") || strings.Contains(c, " -X "))
	})
}

// showLimit is how long the page may take to be right: "within seconds", on a loaded machine too.
const showLimit = time.Minute

// next types the commands of the next scene in the second terminal, checks that they show what the page says, and
// returns it.
func (h *hour) next(t *testing.T) string {
	t.Helper()
	s := h.take(t)
	pattern := s.pattern()
	for deadline := time.Now().Add(showLimit); ; time.Sleep(200 * time.Millisecond) {
		var shown strings.Builder
		failed := ""
		for _, command := range s.commands {
			out, status := h.second.run(t, command)
			shown.WriteString(out)
			if status != 0 {
				failed = fmt.Sprintf("%s: status %d\n", command, status)
			}
		}
		if failed == "" && (s.shown == nil || pattern.MatchString(shown.String())) {
			return shown.String()
		}
		if !s.looks() || time.Now().After(deadline) {
			t.Fatalf("%s\n%sprint\n%sand the page says\n%s\nstandard error: %s", strings.Join(s.commands, "\n"), failed, shown.String(),
				strings.Join(s.shown, "\n"), h.second.err.text())
		}
	}
}

func (h *hour) take(t *testing.T) scene {
	t.Helper()
	if len(h.left) == 0 {
		t.Fatalf("%s: the page has no further commands", h.act.title)
	}
	s := h.left[0]
	h.left = h.left[1:]
	return s
}

// foreground types the next scene's only command in a terminal of its own, where it runs until it is
// interrupted, and waits until it shows what the page says.
func (h *hour) foreground(t *testing.T) *program {
	t.Helper()
	s := h.take(t)
	if len(s.commands) != 1 {
		t.Fatalf("%q: want one command", s.commands)
	}
	command := s.commands[0]
	if strings.HasPrefix(command, "make ") {
		command = h.made(t, command)
	}
	p := startProgram(h.t, h.dir, h.env, "bash", "-c", "exec "+strings.TrimPrefix(command, "exec "))
	if s.shown == nil {
		return p
	}
	for deadline := time.Now().Add(programLimit); ; time.Sleep(50 * time.Millisecond) {
		text := p.text()
		if s.pattern().MatchString(text[:strings.LastIndex(text, "\n")+1]) {
			return p
		}
		select {
		case <-p.done:
			t.Fatalf("%s ended:\n%s", command, p.text())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s prints\n%sand the page says\n%s", command, text, strings.Join(s.shown, "\n"))
		}
	}
}

// made is what a make command runs once all that it needs is built, which here it is.
func (h *hour) made(t *testing.T, command string) string {
	t.Helper()
	const dry = "make --dry-run --no-print-directory -o need-postgres -o build -o bin/versitygw "
	cmd := exec.Command("bash", "-c", dry+strings.TrimPrefix(command, "make "))
	cmd.Dir, cmd.Env = h.dir, append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil || !strings.HasPrefix(string(out), "exec bin/waybill dev") || bytes.Count(out, []byte("\n")) != 1 {
		t.Fatalf("%s: %v, %s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}

// interrupt is Ctrl-C where a program runs.
func interrupt(t *testing.T, p *program) string {
	t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	out, status := p.await(t)
	if status != 0 {
		t.Fatalf("status %d after an interrupt: %s", status, out)
	}
	return out
}

// admin asks an admin address that the page's variables have, such as endpoint.
func (h *hour) admin(t *testing.T, variable, path string) (body string, status int) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(h.dir, defaultDir, devrun.AdminFile))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`(?m)^` + variable + `='(.*)'$`).FindSubmatch(text)
	if match == nil {
		t.Fatalf("no %s in %s", variable, text)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, string(match[1])+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data), response.StatusCode
}

// records are what the endpoint has.
func (h *hour) records(t *testing.T, query string) []endpoint.Record {
	t.Helper()
	body, _ := h.admin(t, "endpoint", "/events"+query)
	return decodeLines[endpoint.Record](t, body)
}

// decodeLines reads one JSON object a line.
func decodeLines[T any](t *testing.T, text string) (all []T) {
	t.Helper()
	for decoder := json.NewDecoder(strings.NewReader(text)); ; {
		var v T
		err := decoder.Decode(&v)
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		all = append(all, v)
	}
}

func (h *hour) status(t *testing.T) status {
	t.Helper()
	return decodeLines[status](t, mustWork(t, h.dir, "status", "-o", "json"))[0]
}

// lanes counts the lanes of each sink that each forwarder has.
func (h *hour) lanes(t *testing.T) map[string]int {
	t.Helper()
	owners := map[string]int{}
	for _, l := range decodeLines[laneState](t, mustWork(t, h.dir, "lanes", "-o", "json")) {
		owners[l.Sink+" "+l.Forwarder]++
	}
	return owners
}

func (h *hour) mustSettle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(programLimit); ; time.Sleep(100 * time.Millisecond) {
		s := h.status(t)
		if len(s.Trouble) == 0 && len(s.DeadLetters) == 0 && !slices.ContainsFunc(s.Sinks, func(s sinkStatus) bool { return s.Events > 0 }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("trouble, dead letters or a backlog stay: %+v", s)
		}
	}
}

func (h *hour) metrics(t *testing.T, variable string) map[string]*dto.MetricFamily {
	t.Helper()
	body, _ := h.admin(t, variable, "/metrics")
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return families
}
