package pipeline

// deliveredMax is how many batches a worker remembers: more than are un-acked in a
// consumer at most (QueueConfig.MaxAckPending), since those may come again after a reset.
// At 60 bytes each, a forwarder that holds 16 lanes of two sinks keeps 30 MiB.
const deliveredMax = 16 << 10

// delivered remembers the newest batches that a sink took in one lane, by this process, so
// that one which comes again is not sent again: its ack or its receipt was lost. What it
// says stays true for ever, and it outlives leases. It belongs to one goroutine.
type delivered struct {
	known map[BatchID]delivery
	order []BatchID // a ring once it is full
	next  int
	keys  *orderWatch // newest seqnums, by key
}

// delivery is what is remembered of a batch.
type delivery struct {
	attempt  int32 // of the message that it came with
	receipt  bool  // a receipt was stored
	refusals bool  // and it named refused events, which are not remembered
}

func newDelivered() *delivered {
	return &delivered{known: make(map[BatchID]delivery), keys: newOrderWatch()}
}

func (d *delivered) add(id BatchID, what delivery) {
	if _, ok := d.known[id]; !ok {
		if len(d.order) < deliveredMax {
			d.order = append(d.order, id)
		} else {
			delete(d.known, d.order[d.next])
			d.order[d.next] = id
			d.next = (d.next + 1) % deliveredMax
		}
	}
	d.known[id] = what
}

func (d *delivered) receipted(id BatchID) {
	if what, ok := d.known[id]; ok {
		what.receipt = true
		d.known[id] = what
	}
}

// treatment is what a worker does with a message.
type treatment int

const (
	sendIt    treatment = iota
	receiptIt           // the sink has it; the receipt may not have arrived
	ackIt               // nothing else is to be done
	terminate           // it cannot be read
)

// treat says what to do with a batch that comes (again).
func (d *delivered) treat(b *Batch) treatment {
	what, ok := d.known[b.ID]
	switch {
	case !ok:
		return sendIt
	case what.receipt && what.attempt == int32(b.Attempt):
		return ackIt
	case what.refusals:
		// A receipt must name them, and only the sink can say them again.
		return sendIt
	default:
		// Not receipted; or a retransmit, which says that the receipt was lost.
		return receiptIt
	}
}
