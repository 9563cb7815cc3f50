package pipeline

// request is what a worker makes of some messages: at most one Send, one receipt, one ack
// each. It belongs to the worker's goroutine.
type request struct {
	held    []held // to be receipted and acked, in queue order
	batches []requestBatch
	items   []Item // to be sent, of the batches that are not known to be delivered
	owners  []int  // of items[i]: index into held and batches
	bytes   int    // of items
	memory  int    // bytes of held, as held.memory counts them
	known   int    // batches that need a receipt only

	traced []tracedItem // the sampled ones of items, in their order
}

// requestBatch is what became of a batch of a request.
type requestBatch struct {
	left    int // events without a final result
	refused []Refusal
}

// maxKnown bounds request.known.
const maxKnown = 4096

// add appends a message; whether its events are to be sent is treat's word.
func (r *request) add(h held, send bool) {
	r.held = append(r.held, h)
	r.memory += h.memory()
	if !send {
		r.known++
		r.batches = append(r.batches, requestBatch{})
		return
	}
	r.batches = append(r.batches, requestBatch{left: len(h.batch.Events)})
	for i, e := range h.batch.Events {
		r.items = append(r.items, Item{Batch: h.batch, Index: i})
		r.owners = append(r.owners, len(r.held)-1)
		r.bytes += len(e)
	}
}

// fits says whether a batch may join, in a request that may keep most bytes in memory. The
// first one always may.
func (r *request) fits(h held, limits Limits, most int) bool {
	if len(r.items) == 0 {
		return true
	}
	bytes := r.bytes
	for _, e := range h.batch.Events {
		bytes += len(e)
	}
	return len(r.items)+len(h.batch.Events) <= limits.Events && bytes <= limits.Bytes && r.memory+h.memory() <= most
}

// full says that no batch would fit.
func (r *request) full(limits Limits, most int) bool {
	return len(r.items) >= limits.Events || r.bytes >= limits.Bytes || r.known >= maxKnown || r.memory >= most
}

// resolve takes the results of the items whose indexes are in pending, which are as many,
// and returns the indexes of those to be tried again, and of the batches now done with.
func (r *request) resolve(pending []int, results []Result) (again, done []int) {
	for i, at := range pending {
		batch := &r.batches[r.owners[at]]
		switch results[i].Verdict {
		case Delivered:
		case Refused:
			batch.refused = append(batch.refused, Refusal{
				Index: r.items[at].Index,
				Code:  plainText(results[i].Code, maxRefusalCode), Reason: plainText(results[i].Reason, maxRefusalReason),
			})
		default:
			again = append(again, at)
			continue
		}
		batch.left--
		if batch.left == 0 {
			done = append(done, r.owners[at])
		}
	}
	return again, done
}

// receipts returns the receipt of every batch.
func (r *request) receipts() []BatchReceipt {
	receipts := make([]BatchReceipt, len(r.held))
	for i, h := range r.held {
		receipts[i] = BatchReceipt{ID: h.batch.ID, Refused: r.batches[i].refused}
	}
	r.nameTraced(receipts)
	return receipts
}

// subset returns the items with the given indexes, without a copy when that is all.
func (r *request) subset(pending []int) []Item {
	if len(pending) == len(r.items) {
		return r.items
	}
	items := make([]Item, len(pending))
	for i, at := range pending {
		items[i] = r.items[at]
	}
	return items
}

// all returns the indexes of all items.
func (r *request) all() []int {
	indexes := make([]int, len(r.items))
	for i := range indexes {
		indexes[i] = i
	}
	return indexes
}
