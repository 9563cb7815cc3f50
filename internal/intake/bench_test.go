package intake

import (
	"net"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// acceptAll is an Accepter that keeps nothing.
type acceptAll struct{}

func (acceptAll) Submit([]pipeline.Event) <-chan error {
	c := make(chan error, 1)
	c <- nil
	return c
}

// BenchmarkPublish is 1,000 callers of one small event each, on ten connections, with the
// governor and without:
//
//	go test ./internal/intake -run '^$' -bench Publish -benchtime 3s -count 6
func BenchmarkPublish(b *testing.B) {
	b.Run("governed", func(b *testing.B) {
		benchmarkPublish(b, func(g *GRPC) []grpc.ServerOption { return g.ServerOptions() })
	})
	b.Run("plain", func(b *testing.B) {
		benchmarkPublish(b, func(g *GRPC) []grpc.ServerOption {
			return append(g.ServerOptions(), grpc.Creds(insecure.NewCredentials()), grpc.ReadBufferSize(32<<10))
		})
	})
}

func benchmarkPublish(b *testing.B, options func(*GRPC) []grpc.ServerOption) {
	const connections, callers = 10, 1000
	service := NewGRPC(mustIntake(b, acceptAll{}, nil))
	server := grpc.NewServer(options(service)...)
	service.Register(server)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer func() { server.Stop(); <-served }()
	clients := make([]chipingress.ChipIngressClient, connections)
	for i := range clients {
		conn, err := grpc.NewClient("passthrough:"+listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		clients[i] = chipingress.NewChipIngressClient(conn)
	}
	var next atomic.Int64
	b.SetParallelism(callers / 2) // of GOMAXPROCS 2
	b.ResetTimer()
	b.RunParallel(func(p *testing.PB) {
		client := clients[next.Add(1)%connections]
		for p.Next() {
			if _, err := client.Publish(b.Context(), validEvent("one")); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
