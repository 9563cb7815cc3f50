package s3mem

import (
	"encoding/xml"
	"net/http"
	"time"
)

// timeForm is that of the times in answers.
const timeForm = "2006-01-02T15:04:05.000Z"

func showTime(t time.Time) string { return t.UTC().Format(timeForm) }

// apiError is an answer that says why a request failed, with S3's code of the reason.
type apiError struct {
	status        int
	code, message string
}

func notImplemented(what string) *apiError {
	return &apiError{http.StatusNotImplemented, "NotImplemented", "The server in memory does not implement " + what + "."}
}

func (e *apiError) write(w http.ResponseWriter, r *http.Request) {
	body := struct {
		XMLName  xml.Name `xml:"Error"`
		Code     string
		Message  string
		Resource string
	}{Code: e.code, Message: e.message, Resource: r.URL.Path}
	if r.Method == http.MethodHead {
		w.WriteHeader(e.status)
		return
	}
	writeXML(w, e.status, body)
}

// writeXML writes an answer. Nobody is told of a client that has gone.
func writeXML(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(xml.Header))
	_ = xml.NewEncoder(w).Encode(body)
}
