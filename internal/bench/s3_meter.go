package bench

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// s3Meter counts the requests of a client, each try of the SDK's by itself, and can lose answers.
type s3Meter struct {
	next s3.HTTPClient

	answers, slowDowns atomic.Int64
	puts, gets         atomic.Int64 // gets are LISTs too
	// lose says whether the answer to a PUT that the server has done gets lost; nil: none.
	lose atomic.Pointer[func() bool]
}

var errAnswerLost = errors.New("the answer was lost")

// Do implements s3.HTTPClient.
func (m *s3Meter) Do(request *http.Request) (*http.Response, error) {
	switch request.Method {
	case http.MethodPut:
		m.puts.Add(1)
	case http.MethodGet:
		m.gets.Add(1)
	}
	response, err := m.next.Do(request)
	if err != nil {
		return response, err
	}
	m.answers.Add(1)
	if response.StatusCode == http.StatusServiceUnavailable || response.StatusCode == http.StatusTooManyRequests {
		m.slowDowns.Add(1)
	}
	if lose := m.lose.Load(); lose != nil && request.Method == http.MethodPut && response.StatusCode == http.StatusOK && (*lose)() {
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		return nil, errAnswerLost
	}
	return response, nil
}
