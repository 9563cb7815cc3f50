// Package s3mem is an S3 server in memory: as much of S3 as Waybill's archive and the checks of it use, with
// the answers of a real server, conditional writes and checksums included. Where there is no S3
// server to start it stands in for one, in tests. What it does not know it refuses with 501.
package s3mem

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// Region is what requests must be signed for.
const Region = "us-east-1"

// Server holds buckets and their objects. It is an http.Handler, with the bucket in the path, and safe for
// concurrent use.
type Server struct {
	accessKey, secretKey string

	mu      sync.RWMutex // guards what follows
	buckets map[string]*bucket
}

var _ http.Handler = (*Server)(nil)

// New returns a server without buckets. Requests must be signed with the two keys.
func New(accessKey, secretKey string) *Server {
	return &Server{accessKey: accessKey, secretKey: secretKey, buckets: map[string]*bucket{}}
}

// bucket is what one bucket holds. The server's mu guards it; an object does not change.
type bucket struct {
	created time.Time
	keys    []string // of objects, in the order of their bytes
	objects map[string]*object
}

func (b *bucket) put(key string, o *object) {
	if at, exists := slices.BinarySearch(b.keys, key); !exists {
		b.keys = slices.Insert(b.keys, at, key)
	}
	b.objects[key] = o
}

func (b *bucket) remove(key string) {
	if at, exists := slices.BinarySearch(b.keys, key); exists {
		b.keys = slices.Delete(b.keys, at, at+1)
	}
	delete(b.objects, key)
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := s.serve(w, r); err != nil {
		err.write(w, r)
	}
}

// serve answers a request, or returns the error that is to be the answer.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) *apiError {
	if err := s.authenticate(r); err != nil {
		return err
	}
	if name := unknownHeader(r.Header); name != "" {
		return notImplemented("the header " + name)
	}
	name, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	query := r.URL.Query()
	switch {
	case name == "" && r.Method == http.MethodGet:
		return s.listBuckets(w)
	case name == "":
		return notImplemented("this request without a bucket")
	case key == "":
		return s.serveBucket(w, r, name, query)
	default:
		return s.serveObject(w, r, name, key, query)
	}
}

// knownHeaders are those of S3's own, beside checksums of the data, that the server obeys or need not.
var knownHeaders = map[string]bool{
	"X-Amz-Content-Sha256": true, "X-Amz-Date": true, checksumHeader + "Mode": true, "X-Amz-Sdk-Checksum-Algorithm": true,
}

// unknownHeader returns one that asks for what the server does not have; empty: there is none.
func unknownHeader(header http.Header) string {
	for name := range header {
		algorithm, _ := strings.CutPrefix(name, checksumHeader)
		if strings.HasPrefix(name, "X-Amz-") && !knownHeaders[name] && checksums[algorithm] == nil {
			return name
		}
	}
	return ""
}

func (s *Server) serveBucket(w http.ResponseWriter, r *http.Request, name string, query url.Values) *apiError {
	switch {
	case r.Method == http.MethodPut && len(query) == 0:
		return s.createBucket(w, name)
	case r.Method == http.MethodHead:
		return s.exists(name)
	case r.Method == http.MethodGet && query.Get("list-type") == "2":
		return s.list(w, name, query)
	case r.Method == http.MethodGet && query.Has("versioning"):
		return s.versioning(w, name)
	case r.Method == http.MethodGet && query.Has("lifecycle"):
		return s.lifecycle(name)
	case r.Method == http.MethodPost && query.Has("delete"):
		return s.removeMany(w, r, name)
	}
	return notImplemented("this request for a bucket")
}

func (s *Server) serveObject(w http.ResponseWriter, r *http.Request, name, key string, query url.Values) *apiError {
	// The SDK says in the query which of its functions asks.
	query.Del("x-id")
	switch {
	case len(query) > 0:
		return notImplemented("this request for an object")
	case r.Method == http.MethodPut:
		return s.put(w, r, name, key)
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		return s.get(w, r, name, key)
	case r.Method == http.MethodDelete:
		return s.remove(w, name, key)
	}
	return notImplemented("this request for an object")
}

// exists says so if there is no bucket of that name.
func (s *Server) exists(name string) *apiError {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, failed := s.lockedBucket(name)
	return failed
}

// lockedBucket returns the bucket of that name. mu is held.
func (s *Server) lockedBucket(name string) (*bucket, *apiError) {
	b, ok := s.buckets[name]
	if !ok {
		return nil, &apiError{http.StatusNotFound, "NoSuchBucket", "The specified bucket does not exist"}
	}
	return b, nil
}

func (s *Server) createBucket(w http.ResponseWriter, name string) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets[name] != nil {
		return &apiError{http.StatusConflict, "BucketAlreadyOwnedByYou", "Your previous request to create the named bucket succeeded and you already own it."}
	}
	s.buckets[name] = &bucket{created: time.Now().UTC(), objects: map[string]*object{}}
	w.Header().Set("Location", "/"+name)
	return nil
}
