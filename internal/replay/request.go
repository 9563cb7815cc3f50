package replay

import "github.com/waybillhq/waybill/pipeline"

// request is what goes to the sink at once: portions of one lane, in their order.
type request struct {
	lane           int
	items          []pipeline.Item
	sources, types []string // of each item
	bytes          int
	last           uint64 // position of the newest portion
}

func (r *request) add(p *portion) {
	r.items = append(r.items, p.items...)
	r.sources, r.types = append(r.sources, p.sources...), append(r.types, p.types...)
	r.bytes += p.bytes
	r.last = p.at
}

// fits says whether a portion may join. The first one always may.
func (r *request) fits(p *portion, limits pipeline.Limits) bool {
	return len(r.items) == 0 || len(r.items)+len(p.items) <= limits.Events && r.bytes+p.bytes <= limits.Bytes
}

func (r *request) full(limits pipeline.Limits) bool {
	return len(r.items) >= limits.Events || r.bytes >= limits.Bytes
}
