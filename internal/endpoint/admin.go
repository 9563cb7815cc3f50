package endpoint

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const (
	// maxBehaviourBytes bounds the body of PUT /behaviour.
	maxBehaviourBytes = 64 << 10
	// eventsPerRead is how many records are copied under the ledger's lock at once, so
	// that a reader of millions does not hold up the receiving side.
	eventsPerRead = 4096
)

// adminPaths is for who opens the address to see what it has.
const adminPaths = `GET  /livez, /readyz   whether the process lives, and takes events
GET  /events           what was received, one event in JSON a line; ?source=, ?type=, ?since=N
GET  /stats            counts; ?keys=false leaves the keys out
GET  /behaviour        how it behaves
PUT  /behaviour        sets that; fields left out get their defaults
POST /reset            forgets what was received
`

// adminHandler serves:
//
//	GET  /                    what follows, in few words
//	GET  /livez               200 while the process lives
//	GET  /readyz              200, or 503 while it plays dead
//	GET  /stats               Stats as JSON; ?keys=false leaves the keys out
//	GET  /events              the records kept, one Record in JSON a line, oldest first;
//	                          ?source= and ?type= select by equality, ?since=n those after n
//	GET  /behaviour           the Behaviour in force
//	PUT  /behaviour           sets it; fields left out get their defaults
//	POST /reset               forgets records and counts
func (e *Endpoint) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, adminPaths) })
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", e.serveReadyz)
	mux.HandleFunc("GET /stats", e.serveStats)
	mux.HandleFunc("GET /events", e.serveEvents)
	mux.HandleFunc("GET /behaviour", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, e.Behaviour()) })
	mux.HandleFunc("PUT /behaviour", e.serveSetBehaviour)
	mux.HandleFunc("POST /reset", func(w http.ResponseWriter, _ *http.Request) {
		e.Reset()
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

func (e *Endpoint) serveReadyz(w http.ResponseWriter, _ *http.Request) {
	if e.Behaviour().Down {
		http.Error(w, "down by its behaviour", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

func (e *Endpoint) serveStats(w http.ResponseWriter, r *http.Request) {
	withKeys := true
	if refuseUnknown(w, r.URL.Query(), "keys") {
		return
	}
	if text := r.URL.Query().Get("keys"); text != "" {
		var err error
		if withKeys, err = strconv.ParseBool(text); err != nil {
			http.Error(w, fmt.Sprintf("keys is %q; use true or false", text), http.StatusBadRequest)
			return
		}
	}
	writeJSON(w, e.service.ledger.stats(withKeys))
}

// refuseUnknown answers a request that has other parameters than the known ones: who has mistyped one would take what he
// gets for what he asked for.
func refuseUnknown(w http.ResponseWriter, query url.Values, known ...string) bool {
	for _, name := range slices.Sorted(maps.Keys(query)) {
		if !slices.Contains(known, name) {
			http.Error(w, fmt.Sprintf("there is no parameter %q; use %s", name, strings.Join(known, ", ")), http.StatusBadRequest)
			return true
		}
	}
	return false
}

func (e *Endpoint) serveEvents(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	if refuseUnknown(w, query, "since", "source", "type") {
		return
	}
	since := int64(0)
	if text := query.Get("since"); text != "" {
		var err error
		if since, err = strconv.ParseInt(text, 10, 64); err != nil || since < 0 {
			http.Error(w, fmt.Sprintf("since is %q; use the n of an event, or 0", text), http.StatusBadRequest)
			return
		}
	}
	source, typ := query.Get("source"), query.Get("type")
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := bufio.NewWriter(w)
	encoder := json.NewEncoder(out)
	for records := e.service.ledger.after(since, eventsPerRead); len(records) > 0; records = e.service.ledger.after(since, eventsPerRead) {
		for _, record := range records {
			if (source != "" && record.Source != source) || (typ != "" && record.Type != typ) {
				continue
			}
			if err := encoder.Encode(record); err != nil {
				return // the reader has gone
			}
		}
		since = records[len(records)-1].N
	}
	if err := out.Flush(); err != nil {
		e.cfg.Log.DebugContext(r.Context(), "reader of /events has gone", "error", err)
	}
}

func (e *Endpoint) serveSetBehaviour(w http.ResponseWriter, r *http.Request) {
	behaviour := DefaultBehaviour()
	decoder := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBehaviourBytes))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&behaviour)
	if err == nil {
		err = e.SetBehaviour(behaviour)
	}
	if err != nil {
		http.Error(w, err.Error()+"; GET /behaviour shows the fields that there are", http.StatusBadRequest)
		return
	}
	writeJSON(w, e.Behaviour())
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(append(body, '\n')) // the reader may have gone; nobody is left to tell
}
