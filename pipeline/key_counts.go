package pipeline

import (
	"iter"
	"strings"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// OtherKey is the source and the type of the events that have no count of their own.
const OtherKey = "other"

// KeyCounts counts events by source and type: the first keys each by itself, the rest together
// under OtherKey, so that a metric of them stays bounded. An instrument's own Add takes several
// times as long. It is safe for concurrent use.
type KeyCounts struct {
	most  int
	label []attribute.KeyValue // of every count

	mu    sync.RWMutex
	known map[keyName]*keyCount // guarded by mu; never more than most
	other *keyCount
}

// keyCount is how many events of a key there were.
type keyCount struct {
	option metric.MeasurementOption
	n      atomic.Int64
}

// NewKeyCounts returns counts for most keys and the rest, which have the labels beside source
// and type.
func NewKeyCounts(most int, labels ...attribute.KeyValue) *KeyCounts {
	c := &KeyCounts{most: most, label: labels, known: make(map[keyName]*keyCount)}
	c.other = c.count(keyName{OtherKey, OtherKey})
	return c
}

func (c *KeyCounts) count(k keyName) *keyCount {
	labels := append(c.label[:len(c.label):len(c.label)],
		// One that is not valid UTF-8 would spoil all of /metrics.
		attribute.String("source", strings.ToValidUTF8(k.source, "?")), attribute.String("type", strings.ToValidUTF8(k.typ, "?")))
	return &keyCount{option: metric.WithAttributeSet(attribute.NewSet(labels...))}
}

// Add counts one event of each source and type. The strings may be parts of something larger,
// which is not kept.
func (c *KeyCounts) Add(keys iter.Seq2[string, string]) {
	var unknown []keyName
	c.mu.RLock()
	for source, typ := range keys {
		k := keyName{source, typ}
		if count := c.known[k]; !c.note(count) {
			unknown = append(unknown, k)
		}
	}
	c.mu.RUnlock()
	c.addNew(unknown)
}

// addBytes is Add, without making strings of what is known.
func (c *KeyCounts) addBytes(keys iter.Seq2[[]byte, []byte]) {
	var unknown []keyName
	c.mu.RLock()
	for source, typ := range keys {
		if count := c.known[keyName{string(source), string(typ)}]; !c.note(count) {
			unknown = append(unknown, keyName{string(source), string(typ)})
		}
	}
	c.mu.RUnlock()
	c.addNew(unknown)
}

// note counts one, unless there is room for a count that there is not yet. The caller holds c.mu.
func (c *KeyCounts) note(count *keyCount) bool {
	switch {
	case count != nil:
		count.n.Add(1)
	case len(c.known) >= c.most:
		c.other.n.Add(1)
	default:
		return false
	}
	return true
}

func (c *KeyCounts) addNew(keys []keyName) {
	for _, k := range keys {
		c.place(k).n.Add(1)
	}
}

// place returns the count of a key, which gets one while there is room.
func (c *KeyCounts) place(k keyName) *keyCount {
	c.mu.Lock()
	defer c.mu.Unlock()
	if count, ok := c.known[k]; ok {
		return count
	}
	if len(c.known) >= c.most {
		return c.other
	}
	k = keyName{strings.Clone(k.source), strings.Clone(k.typ)}
	count := c.count(k)
	c.known[k] = count
	return count
}

// Option returns the attributes under which a key is counted. It gives none a count of its own.
func (c *KeyCounts) Option(source, typ string) metric.MeasurementOption {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if count, ok := c.known[keyName{source, typ}]; ok {
		return count.option
	}
	return c.other.option
}

// Other returns the attributes of the rest.
func (c *KeyCounts) Other() metric.MeasurementOption { return c.other.option }

// Observe says how many there were of each.
func (c *KeyCounts) Observe(o metric.Observer, counter metric.Int64Observable) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, count := range c.known {
		o.ObserveInt64(counter, count.n.Load(), count.option)
	}
	if n := c.other.n.Load(); n > 0 {
		o.ObserveInt64(counter, n, c.other.option)
	}
}
