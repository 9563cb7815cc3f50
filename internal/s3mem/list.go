package s3mem

import (
	"encoding/base64"
	"encoding/xml"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// mostKeys is the most that one answer lists.
const mostKeys = 1000

// listQuery asks for keys: those that begin with prefix and come after a text, up to a number, and with
// what follows the delimiter left out, each beginning once.
type listQuery struct {
	prefix, delimiter, after string
	most                     int
}

// listed is one page of keys.
type listed struct {
	keys    []string // of objects
	common  []string // beginnings that end with the delimiter
	last    string   // of keys and common
	trimmed bool     // there are more
}

// page collects the keys in the order of their bytes. b's server's mu is held.
func (b *bucket) page(q listQuery) (out listed) {
	at, exact := slices.BinarySearch(b.keys, max(q.after, q.prefix))
	if exact && q.after >= q.prefix && q.after != "" {
		at++
	}
	for _, key := range b.keys[at:] {
		if !strings.HasPrefix(key, q.prefix) {
			break
		}
		common := q.common(key)
		if common != "" && (common == q.after || common == out.last) {
			continue
		}
		if len(out.keys)+len(out.common) == q.most {
			out.trimmed = true
			break
		}
		if common != "" {
			out.common = append(out.common, common)
			out.last = common
			continue
		}
		out.keys = append(out.keys, key)
		out.last = key
	}
	return out
}

// common returns the beginning that stands for a key; empty where the key stands for itself.
func (q listQuery) common(key string) string {
	if q.delimiter == "" {
		return ""
	}
	rest, _, found := strings.Cut(key[len(q.prefix):], q.delimiter)
	if !found {
		return ""
	}
	return q.prefix + rest + q.delimiter
}

type listedObject struct {
	Key          string
	LastModified string
	ETag         string
	Size         int
	StorageClass string
}

type commonPrefix struct{ Prefix string }

type listResult struct {
	XMLName               xml.Name `xml:"ListBucketResult"`
	Name                  string
	Prefix                string
	Delimiter             string `xml:",omitempty"`
	StartAfter            string `xml:",omitempty"`
	ContinuationToken     string `xml:",omitempty"`
	NextContinuationToken string `xml:",omitempty"`
	KeyCount              int
	MaxKeys               int
	IsTruncated           bool
	Contents              []listedObject
	CommonPrefixes        []commonPrefix
}

// list answers ListObjectsV2.
func (s *Server) list(w http.ResponseWriter, name string, query url.Values) *apiError {
	q := listQuery{prefix: query.Get("prefix"), delimiter: query.Get("delimiter"), after: query.Get("start-after"), most: mostKeys}
	if text := query.Get("max-keys"); text != "" {
		most, err := strconv.Atoi(text)
		if err != nil || most < 0 {
			return &apiError{http.StatusBadRequest, "InvalidArgument", "max-keys is " + text + "; want a number of keys"}
		}
		q.most = min(most, mostKeys)
	}
	if query.Get("encoding-type") != "" {
		return notImplemented("encoding-type")
	}
	token := query.Get("continuation-token")
	if token != "" {
		after, err := base64.URLEncoding.DecodeString(token)
		if err != nil {
			return &apiError{http.StatusBadRequest, "InvalidArgument", "The continuation token provided is incorrect"}
		}
		q.after = string(after)
	}
	result := listResult{
		Name: name, Prefix: q.prefix, Delimiter: q.delimiter, StartAfter: query.Get("start-after"), ContinuationToken: token,
		MaxKeys: q.most,
	}
	if failed := s.fill(&result, q); failed != nil {
		return failed
	}
	writeXML(w, http.StatusOK, result)
	return nil
}

// fill puts a page into the answer.
func (s *Server) fill(result *listResult, q listQuery) *apiError {
	s.mu.RLock()
	defer s.mu.RUnlock()
	b, failed := s.lockedBucket(result.Name)
	if failed != nil {
		return failed
	}
	page := b.page(q)
	result.KeyCount, result.IsTruncated = len(page.keys)+len(page.common), page.trimmed && q.most > 0
	if result.IsTruncated {
		result.NextContinuationToken = base64.URLEncoding.EncodeToString([]byte(page.last))
	}
	for _, key := range page.keys {
		o := b.objects[key]
		result.Contents = append(result.Contents, listedObject{key, showTime(o.modified), o.etag, len(o.data), "STANDARD"})
	}
	for _, common := range page.common {
		result.CommonPrefixes = append(result.CommonPrefixes, commonPrefix{common})
	}
	return nil
}

func (s *Server) listBuckets(w http.ResponseWriter) *apiError {
	type listedBucket struct{ Name, CreationDate string }
	var result struct {
		XMLName xml.Name       `xml:"ListAllMyBucketsResult"`
		Buckets []listedBucket `xml:"Buckets>Bucket"`
	}
	s.mu.RLock()
	for _, name := range slices.Sorted(maps.Keys(s.buckets)) {
		result.Buckets = append(result.Buckets, listedBucket{name, showTime(s.buckets[name].created)})
	}
	s.mu.RUnlock()
	writeXML(w, http.StatusOK, result)
	return nil
}

// versioning says that there are no versions.
func (s *Server) versioning(w http.ResponseWriter, name string) *apiError {
	if failed := s.exists(name); failed != nil {
		return failed
	}
	writeXML(w, http.StatusOK, struct {
		XMLName xml.Name `xml:"VersioningConfiguration"`
	}{})
	return nil
}

// lifecycle says that nothing is deleted by rules.
func (s *Server) lifecycle(name string) *apiError {
	if failed := s.exists(name); failed != nil {
		return failed
	}
	return &apiError{http.StatusNotFound, "NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"}
}
