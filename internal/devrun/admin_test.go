package devrun

import (
	"os/exec"
	"testing"
)

// A shell that reads the file knows the addresses as they are, whatever is in them.
func TestAShellReadsTheAdminAddresses(t *testing.T) {
	s, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	s.admins = map[string]string{"ingest-1": "127.0.0.1:1", "forwarder-12": "127.0.0.1:2"}
	s.EndpointAdmin = "http://it's?a=$HOME&b=`id`"
	if err := s.writeAdmin(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-euc", `. "$0"; printf '%s\n' "$ingest_1" "$forwarder_12" "$endpoint"`, s.AdminPath()).CombinedOutput()
	if want := "http://127.0.0.1:1\nhttp://127.0.0.1:2\n" + s.EndpointAdmin + "\n"; err != nil || string(out) != want {
		t.Errorf("%v: %s", err, out)
	}
}
