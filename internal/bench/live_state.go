package bench

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/livestate"
)

// stillState returns the state of the live path once it does not change any more.
func (s *System) stillState(ctx context.Context) (livestate.State, error) {
	return livestate.Still(ctx, s.liveState)
}

func (s *System) liveState(ctx context.Context) (livestate.State, error) {
	js, err := jetstream.New(s.nats)
	if err != nil {
		return nil, fmt.Errorf("state of the live path: %w", err)
	}
	out := livestate.State{}
	if err := out.Queue(ctx, js); err != nil || s.databaseURL == "" {
		return out, err
	}
	conn, err := s.postgres(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }() // it only reads
	return out, out.Tables(ctx, conn)
}
