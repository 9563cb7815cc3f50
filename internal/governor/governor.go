package governor

import (
	"context"
	"net"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Window is what a client may send of a stream before anybody has said that there is room
// for it. Calls whose messages fit in it are never held up; a larger message costs a round
// trip. The protocol's own first window, of 64 KiB, would let two thousand clients
// send 125 MiB unasked.
//
// Where there are many connections, a call has NarrowWindow on those that come later.
const (
	Window       = 16 << 10
	NarrowWindow = 4 << 10
	// wideConnections is how many have Window at once. What their clients send unasked is 4 MiB,
	// one call each; that of two thousand more is 8 MiB.
	wideConnections = 256
)

// Governor governs the connections of one server. It bounds the first windows of all open
// calls together.
type Governor struct {
	maxWindows int64
	windows    atomic.Int64 // bytes of first windows that calls hold
	wide       atomic.Int64 // open connections that have Window
}

// New returns a governor that lets calls hold maxWindows bytes of first windows.
func New(maxWindows int64) *Governor { return &Governor{maxWindows: maxWindows} }

// Windows returns how many bytes of first windows calls hold just now.
func (g *Governor) Windows() int64 { return g.windows.Load() }

// Credentials returns inner's, whose connections are governed. The server must be made with
// them, with grpc.ReadBufferSize(0), because the connection reads ahead by itself and must
// know which frame grpc-go looks at, and with a static stream window that holds two of the
// largest messages.
func (g *Governor) Credentials(inner credentials.TransportCredentials) credentials.TransportCredentials {
	return &transportCredentials{TransportCredentials: inner, governor: g}
}

type transportCredentials struct {
	credentials.TransportCredentials
	governor *Governor
}

// ServerHandshake implements credentials.TransportCredentials.
func (t *transportCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := t.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	governed := newConn(t.governor, conn)
	return governed, authInfo{AuthInfo: info, conn: governed}, nil
}

// widen returns the first window of the calls of a new connection.
func (g *Governor) widen() int64 {
	if g.wide.Add(1) <= wideConnections {
		return Window
	}
	g.wide.Add(-1)
	return NarrowWindow
}

// Clone implements credentials.TransportCredentials.
func (t *transportCredentials) Clone() credentials.TransportCredentials {
	return &transportCredentials{TransportCredentials: t.TransportCredentials.Clone(), governor: t.governor}
}

// authInfo is how a call finds its connection.
type authInfo struct {
	credentials.AuthInfo
	conn *Conn
}

type callKey struct{}

// Begin takes the first window of a call that begins, and returns the call's context with a
// Call in it; false means that there are too many calls already, which must not keep a
// vital call out. It must be called once for each call, from the server's tap handle, and
// does not block. The window goes back when the call ends, or when its handler says so.
func (g *Governor) Begin(ctx context.Context, vital bool) (context.Context, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ctx, true
	}
	info, ok := p.AuthInfo.(authInfo)
	if !ok {
		return ctx, true // a connection that is not governed
	}
	window := info.conn.window
	if g.windows.Add(window) > g.maxWindows && !vital {
		g.windows.Add(-window)
		return ctx, false
	}
	return context.WithValue(ctx, callKey{}, info.conn.begin()), true
}

// FromContext returns the Call of a handler's context, or nil when it has none.
func FromContext(ctx context.Context) *Call {
	call, _ := ctx.Value(callKey{}).(*Call)
	return call
}
