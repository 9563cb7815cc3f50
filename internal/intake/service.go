package intake

import (
	"google.golang.org/grpc"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

// serviceDesc describes chipingress.pb.ChipIngress with all calls as streams, of one message
// or many. On the wire that is the same; here it lets a handler decide before its message is
// received.
var serviceDesc = grpc.ServiceDesc{
	ServiceName: chipingress.ChipIngress_ServiceDesc.ServiceName,
	HandlerType: (*chipingress.ChipIngressServer)(nil),
	Streams: []grpc.StreamDesc{
		{StreamName: "Publish", Handler: alone((*GRPC).handlePublish)},
		{StreamName: "PublishBatch", Handler: alone((*GRPC).handlePublishBatch)},
		{StreamName: "StreamEvents", Handler: handleStreamEvents, ServerStreams: true, ClientStreams: true},
		{StreamName: "Ping", Handler: alone((*GRPC).handlePing)},
		{StreamName: "RegisterSchema", Handler: alone((*GRPC).handleRegisterSchema)},
	},
	Metadata: "chip_ingress.proto", // where reflection looks the messages up
}

// alone makes a handler of one that takes one message.
func alone(handle func(*GRPC, *incoming) error) grpc.StreamHandler {
	return func(service any, stream grpc.ServerStream) error {
		g := service.(*GRPC)
		method, _ := grpc.MethodFromServerStream(stream)
		return g.timed(method, func() error {
			return g.governed(stream, true, func(in *incoming) error { return handle(g, in) })
		})
	}
}

func (g *GRPC) handlePublish(in *incoming) error {
	one := &eventRequest{encoder: g.encoder(in.Context())}
	if err := in.RecvMsg(one); err != nil {
		return err
	}
	response, err := g.publishOne(in, one)
	return respond(in, response, err)
}

func (g *GRPC) handlePublishBatch(in *incoming) error {
	batch := &batchRequest{encoder: g.encoder(in.Context()), limit: g.intake.config.MaxRequestEvents}
	if err := in.RecvMsg(batch); err != nil {
		return err
	}
	response, err := g.publishBatch(in, batch)
	return respond(in, response, err)
}

func (g *GRPC) handlePing(in *incoming) error {
	request := new(chipingress.EmptyRequest)
	if err := in.RecvMsg(request); err != nil {
		return err
	}
	response, err := g.Ping(in.Context(), request)
	return respond(in, response, err)
}

// respond ends a call of one message.
func respond(in *incoming, response any, err error) error {
	if err != nil {
		return err
	}
	return in.SendMsg(response)
}

// handleStreamEvents gets its stream from the interceptor.
func handleStreamEvents(service any, stream grpc.ServerStream) error {
	return service.(*GRPC).streamEvents(stream.(*incoming))
}

// handleRegisterSchema refuses the call without reading the schemas.
func (g *GRPC) handleRegisterSchema(in *incoming) error {
	_, err := g.RegisterSchema(in.Context(), nil)
	return err
}
