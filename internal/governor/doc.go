// Package governor keeps the windows of gRPC streams: it stands between the socket and
// grpc-go, and lets a client send no more of a message than memory was set aside for.
//
// grpc-go receives a whole message before a handler sees it, and opens a stream's window to
// the message's length as soon as it has read the five bytes that announce it. So a server
// has no say in how many bytes all its clients send at once. A [Conn] takes the windows of
// streams over: it tells the client a small first window, [Window], drops the updates that
// grpc-go writes for streams (grpc-go is given a window so large that it is never in the
// way), reads the announcements as they come in, and writes updates of its own when the
// handler, by way of its [Call], says so. The connection's own window stays grpc-go's.
//
// Nothing else of the protocol is touched: no frame is held up, made up or changed but the
// first SETTINGS, and no header is decoded or encoded. docs/decisions/0008 says why.
package governor
