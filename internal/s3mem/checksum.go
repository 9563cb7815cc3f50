package s3mem

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"net/http"
	"strings"
)

// checksumHeader begins the names of the headers with a checksum of the data.
const checksumHeader = "X-Amz-Checksum-"

// checksums are S3's, by the end of their header's name.
var checksums = map[string]func() hash.Hash{
	"Crc32":     func() hash.Hash { return crc32.NewIEEE() },
	"Crc32c":    func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) },
	"Crc64nvme": func() hash.Hash { return crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5)) },
	"Sha1":      sha1.New,
	"Sha256":    sha256.New,
}

// verify compares the data of a request with every checksum that came with it, and returns those that
// are kept with the object, by the names of their headers.
func verify(header http.Header, data []byte) (map[string]string, *apiError) {
	switch given := header.Get("X-Amz-Content-Sha256"); {
	case given == "UNSIGNED-PAYLOAD" || given == "":
	case strings.HasPrefix(given, "STREAMING-"):
		return nil, notImplemented("data in signed chunks")
	default:
		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != given {
			return nil, &apiError{http.StatusBadRequest, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed."}
		}
	}
	if given := header.Get("Content-Md5"); given != "" && given != sumOf(md5.New(), data) {
		return nil, badDigest("Content-MD5")
	}
	kept := map[string]string{}
	for name, algorithm := range checksums {
		given := header.Get(checksumHeader + name)
		if given == "" {
			continue
		}
		if given != sumOf(algorithm(), data) {
			return nil, badDigest(strings.ToLower(checksumHeader + name))
		}
		kept[checksumHeader+name] = given
	}
	return kept, nil
}

func badDigest(name string) *apiError {
	return &apiError{http.StatusBadRequest, "BadDigest", "The " + name + " you specified did not match what we received."}
}

func sumOf(h hash.Hash, data []byte) string {
	_, _ = bytes.NewReader(data).WriteTo(h) // a hash does not fail
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}
