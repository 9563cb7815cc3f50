package waybilltest_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/waybilltest"
)

// announce is the code under test: it sends a CloudEvent over HTTP.
func announce(waybillURL, order string) error {
	body := `{"specversion":"1.0","id":"` + order + `","source":"/shop","type":"order.created","data":{"total":3}}`
	answer, err := http.Post(waybillURL+"/v1/events", "application/cloudevents+json", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= 300 { // it is not accepted
		return errors.New(answer.Status)
	}
	return nil
}

func TestAnOrderIsAnnounced(t *testing.T) {
	t.Parallel()
	w := waybilltest.Start(t)
	if err := announce(w.HTTPURL, "17"); err != nil {
		t.Fatal(err)
	}
	orders := waybilltest.Filter{Source: "/shop", Type: "order.*"}
	got := w.Expect(t, orders, 1, 10*time.Second) // at the endpoint
	if got[0].ID != "17" || string(got[0].Data) != `{"total":3}` {
		t.Errorf("announced: %s, %s", got[0], got[0].Data)
	}
	w.ExpectArchived(t, orders, 1, 10*time.Second)
}
