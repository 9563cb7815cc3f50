package process

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The address of a process says what it has, and has what it says.
func TestAdminSaysWhatItHas(t *testing.T) {
	handler := mustAdmin(t).handler()
	ask := func(path string) *httptest.ResponseRecorder {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
		return answer
	}
	index := ask("/")
	if index.Code != http.StatusOK || strings.Count(index.Body.String(), "\n") != 4 {
		t.Fatalf("%d %s", index.Code, index.Body)
	}
	for line := range strings.Lines(index.Body.String()) {
		if path := strings.Fields(line)[0]; ask(path).Code == http.StatusNotFound {
			t.Errorf("%s is not there", path)
		}
	}
	if answer := ask("/nosuch"); answer.Code != http.StatusNotFound {
		t.Errorf("/nosuch: %d", answer.Code)
	}
}
