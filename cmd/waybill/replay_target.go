package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/internal/s3fault"
)

// s3Field is one of package sinks, with the variable that sets it for the live archive.
var s3Field = regexp.MustCompile(`(?:[A-Z]\w*\.)?[A-Z]\w* \(WAYBILL_(S3_\w+)\)`)

// named returns an error about the settings of the target with the names of the flags that have set them: --to-s3-…,
// or, where none has, those of the archive. It returns nil for nil.
func (t replayTarget) named(err error) error {
	if err == nil {
		return nil
	}
	text := s3Field.ReplaceAllStringFunc(err.Error(), func(found string) string {
		flag := strings.ToLower(strings.ReplaceAll(s3Field.FindStringSubmatch(found)[1], "_", "-"))
		if t.sets(flag) {
			return "--to-" + flag
		}
		return found
	})
	if text == err.Error() {
		return err
	}
	return errors.New(text)
}

// sets reports whether a setting of an S3 server, such as s3-bucket, is another than the archive's.
func (t replayTarget) sets(setting string) bool {
	return map[string]bool{
		"s3-bucket": t.ToS3Bucket != "", "s3-prefix": t.ToS3Prefix != "", "s3-region": t.ToS3Region != "",
		"s3-endpoint":   t.ToS3Endpoint != "",
		"s3-access-key": t.otherKeys(), "s3-secret-key": t.otherKeys(),
	}[setting]
}

// otherKeys reports that the archive's keys are not those of the target, whether others are given or not.
func (t replayTarget) otherKeys() bool {
	return t.ToS3AccessKey != "" || t.ToS3SecretKey != "" || t.ToS3Endpoint != ""
}

// failed is the error of a request to the target.
func (t replayTarget) failed(err error, to process.S3) error {
	names := s3fault.Default()
	if t.sets("s3-endpoint") {
		names.Endpoint = "--to-s3-endpoint"
	}
	if t.sets("s3-region") {
		names.Region = "--to-s3-region"
	}
	if t.sets("s3-bucket") {
		names.Bucket = "--to-s3-bucket"
	}
	if t.otherKeys() {
		names.Keys = "--to-s3-access-key and --to-s3-secret-key (WAYBILL_TO_S3_ACCESS_KEY, WAYBILL_TO_S3_SECRET_KEY)"
	}
	explained := s3fault.Explain(err, to.Where(), names)
	if told := (*s3fault.Error)(nil); errors.As(explained, &told) {
		if t.sets("s3-endpoint") {
			return errors.New(explained.Error()) // not about one of the servers that the system has
		}
		return explained
	}
	return fmt.Errorf("%s: %w", to.Where(), t.named(err))
}
