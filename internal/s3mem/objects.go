package s3mem

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxBody bounds the data of one request, in bytes: far above an object of the archive.
const maxBody = 256 << 20

// object is the data of a key. It does not change.
type object struct {
	data        []byte
	etag        string // with its quotes
	modified    time.Time
	contentType string
	checksums   map[string]string // that it came with, by header
}

func noSuchKey() *apiError {
	return &apiError{http.StatusNotFound, "NoSuchKey", "The specified key does not exist."}
}

// readBody reads and checks the data of a request.
func readBody(w http.ResponseWriter, r *http.Request) (data []byte, checksums map[string]string, failed *apiError) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, nil, &apiError{http.StatusBadRequest, "IncompleteBody", "The data could not be read: " + err.Error()}
	}
	checksums, failed = verify(r.Header, data)
	return data, checksums, failed
}

// put stores an object. With If-None-Match: * it must not be there yet: of all who try at once one succeeds.
func (s *Server) put(w http.ResponseWriter, r *http.Request, name, key string) *apiError {
	condition := r.Header.Get("If-None-Match")
	switch {
	case condition != "" && condition != "*":
		return notImplemented("If-None-Match with anything but *")
	case r.Header.Get("If-Match") != "":
		return notImplemented("If-Match of a write")
	}
	data, sums, failed := readBody(w, r)
	if failed != nil {
		return failed
	}
	sum := md5.Sum(data)
	o := &object{
		data: data, etag: `"` + hex.EncodeToString(sum[:]) + `"`, modified: time.Now().UTC(),
		contentType: r.Header.Get("Content-Type"), checksums: sums,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b, failed := s.lockedBucket(name)
	if failed != nil {
		return failed
	}
	if condition == "*" && b.objects[key] != nil {
		return &apiError{http.StatusPreconditionFailed, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold"}
	}
	b.put(key, o)
	w.Header().Set("ETag", o.etag)
	setAll(w.Header(), sums)
	return nil
}

func setAll(header http.Header, values map[string]string) {
	for name, value := range values {
		header.Set(name, value)
	}
}

// get answers GET and HEAD, of a range too.
func (s *Server) get(w http.ResponseWriter, r *http.Request, name, key string) *apiError {
	for _, condition := range []string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if r.Header.Get(condition) != "" {
			return notImplemented(condition + " of a read")
		}
	}
	o, failed := s.object(name, key)
	if failed != nil {
		return failed
	}
	part, status := o.data, http.StatusOK
	header := w.Header()
	if asked := r.Header.Get("Range"); asked != "" {
		from, to, failed := parseRange(asked, len(o.data))
		if failed != nil {
			return failed
		}
		part, status = o.data[from:to], http.StatusPartialContent
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(o.data)))
	} else if strings.EqualFold(r.Header.Get("X-Amz-Checksum-Mode"), "ENABLED") {
		setAll(header, o.checksums) // they are of the whole
	}
	if o.contentType != "" {
		header.Set("Content-Type", o.contentType)
	}
	header.Set("Accept-Ranges", "bytes")
	header.Set("ETag", o.etag)
	header.Set("Last-Modified", o.modified.Format(http.TimeFormat))
	header.Set("Content-Length", strconv.Itoa(len(part)))
	w.WriteHeader(status)
	if r.Method == http.MethodGet {
		_, _ = w.Write(part) // nobody is told of a client that has gone
	}
	return nil
}

func (s *Server) object(name, key string) (*object, *apiError) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	b, failed := s.lockedBucket(name)
	if failed != nil {
		return nil, failed
	}
	o := b.objects[key]
	if o == nil {
		return nil, noSuchKey()
	}
	return o, nil
}

// parseRange reads "bytes=2-5", "bytes=2-" and "bytes=-3" of an object of size bytes. A range that goes beyond
// the object ends with it, and one of its last bytes begins with it.
func parseRange(text string, size int) (from, to int, failed *apiError) {
	first, last, ok := strings.Cut(strings.TrimPrefix(text, "bytes="), "-")
	if !strings.HasPrefix(text, "bytes=") || !ok || strings.Contains(last, ",") {
		return 0, 0, notImplemented("the range " + text)
	}
	from, to = 0, size
	begin, errFirst := strconv.Atoi(first)
	end, errLast := strconv.Atoi(last)
	switch {
	case first == "" && errLast == nil && end > 0:
		from = max(size-end, 0)
	case errFirst == nil && last == "":
		from = begin
	case errFirst == nil && errLast == nil && end >= begin:
		from, to = begin, min(end+1, size)
	default:
		return 0, 0, notImplemented("the range " + text)
	}
	if from >= size {
		return 0, 0, &apiError{http.StatusRequestedRangeNotSatisfiable, "InvalidRange", "The requested range is not satisfiable"}
	}
	return from, to, nil
}

func (s *Server) remove(w http.ResponseWriter, name, key string) *apiError {
	if failed := s.delete(name, key); failed != nil {
		return failed
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// delete deletes an object, if it is there.
func (s *Server) delete(name, key string) *apiError {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, failed := s.lockedBucket(name)
	if failed != nil {
		return failed
	}
	b.remove(key)
	return nil
}

// removeMany deletes what a list in XML names.
func (s *Server) removeMany(w http.ResponseWriter, r *http.Request, name string) *apiError {
	data, _, failed := readBody(w, r)
	if failed != nil {
		return failed
	}
	var list struct {
		Objects []struct{ Key string } `xml:"Object"`
		Quiet   bool
	}
	if err := xml.Unmarshal(data, &list); err != nil {
		return &apiError{http.StatusBadRequest, "MalformedXML", "The XML you provided was not well-formed: " + err.Error()}
	}
	type deleted struct{ Key string }
	var result struct {
		XMLName xml.Name  `xml:"DeleteResult"`
		Deleted []deleted `xml:"Deleted"`
	}
	for _, o := range list.Objects {
		if failed := s.delete(name, o.Key); failed != nil {
			return failed
		}
		if !list.Quiet {
			result.Deleted = append(result.Deleted, deleted{o.Key})
		}
	}
	writeXML(w, http.StatusOK, result)
	return nil
}
