# One image with Waybill's four programs: ingest, forwarder, janitor and waybill. Name the
# one to run, e.g. docker run waybill ingest --help.

ARG GO_IMAGE=golang:1.26-bookworm
ARG BASE_IMAGE=gcr.io/distroless/static-debian12:nonroot

FROM ${GO_IMAGE} AS build
# Where modules come from, for networks that have a proxy of their own.
ARG GOPROXY
ARG GOSUMDB
WORKDIR /src
# The modules are a layer of their own, which changes less often than the code.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -buildvcs=false -trimpath -ldflags='-s -w' -o /out/ ./cmd/...

FROM ${BASE_IMAGE}
COPY --from=build /out/ /usr/local/bin/
COPY LICENSE /usr/share/doc/waybill/
# HTTP, gRPC, and the admin address of each process.
EXPOSE 8080 50051 9090
CMD ["waybill", "--help"]
