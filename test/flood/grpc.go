package main

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	protoencoding "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

// grpcSender sends on one connection.
type grpcSender struct{ conn *grpc.ClientConn }

func openGRPC(sys *system, _ int) (sender, error) {
	conn, err := grpc.NewClient("passthrough:"+sys.stack.GRPC[0], grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithReadBufferSize(4<<10), grpc.WithDisableRetry())
	if err != nil {
		return nil, err
	}
	return &grpcSender{conn}, nil
}

func (s *grpcSender) close() error { return s.conn.Close() }

func (s *grpcSender) send(ctx context.Context, source, id string) outcome {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response := new(chipingress.PublishResponse)
	err := s.conn.Invoke(ctx, chipingress.ChipIngress_PublishBatch_FullMethodName, protobufCall(source, id), response,
		grpc.ForceCodecV2(piecesCodec{encoding.GetCodecV2(protoencoding.Name)}), grpc.WaitForReady(true))
	if err == nil && len(response.Results) == eventsOfCall {
		return outcome{accepted: true}
	}
	st := status.Convert(err)
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok && st.Code() == codes.ResourceExhausted {
			return outcome{refused: true, after: max(info.RetryDelay.AsDuration(), time.Millisecond)}
		}
	}
	return outcome{err: fmt.Errorf("%d results, %w", len(response.Results), err)}
}

// piecesCodec sends a call without copying it.
type piecesCodec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c piecesCodec) Marshal(v any) (mem.BufferSlice, error) {
	body, ok := v.(call)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	pieces := make(mem.BufferSlice, len(body))
	for i, piece := range body {
		pieces[i] = mem.SliceBuffer(piece)
	}
	return pieces, nil
}
