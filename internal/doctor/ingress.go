package doctor

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/internal/netfault"
)

func examineIngress(ctx context.Context, cfg Config) []Finding {
	if cfg.Ingress == nil {
		return nil
	}
	p := &patient{server: "ingress"}
	switch err := cfg.Ingress(ctx); status.Code(err) {
	case codes.OK:
		p.ok("reachable", "%s answers", cfg.IngressEndpoint)
	case codes.Unimplemented:
		p.warn("reachable", "see whether WAYBILL_INGRESS_ENDPOINT is an endpoint of chipingress.pb.ChipIngress", "%s answers, and knows no Ping", cfg.IngressEndpoint)
	case codes.Unauthenticated, codes.PermissionDenied:
		p.fail("reachable", "correct WAYBILL_INGRESS_USER and WAYBILL_INGRESS_PASSWORD, WAYBILL_INGRESS_HEADERS or the client certificate", "%v", err)
	default:
		what := err.Error()
		if reason, ok := netfault.Undialed(what); ok {
			what = cfg.IngressEndpoint + ": " + reason
		}
		p.fail("reachable", "start the endpoint, or correct --ingress-endpoint (WAYBILL_INGRESS_ENDPOINT) and --ingress-tls (WAYBILL_INGRESS_TLS)", "%s", what)
	}
	return p.findings
}
