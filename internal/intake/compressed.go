package intake

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcencoding "google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
)

// Messages must come as they are: what is charged for one is its size on the wire, and inflated it may
// be a thousand times that. Nothing here asks grpc to inflate any, but it does so in every server of a
// process in which any package, such as an exporter of spans, imports its gzip.

// refuseCompressed says that a call cannot be served whose messages come compressed.
func refuseCompressed(ctx context.Context) error {
	call, ok := grpc.ServerTransportStreamFromContext(ctx).(interface{ RecvCompress() string })
	if !ok {
		return nil
	}
	if name := call.RecvCompress(); name != "" && name != grpcencoding.Identity {
		return status.Errorf(codes.Unimplemented, "messages that are compressed (%.20q) are not taken; send them as they are", name)
	}
	return nil
}

// noGzip fails where grpc would inflate a message: that of a call that refuseCompressed does not see.
type noGzip struct{}

func (noGzip) Do(io.Reader) ([]byte, error) {
	return nil, errors.New("compressed messages are not taken; send them as they are")
}

func (noGzip) Type() string { return "gzip" }
