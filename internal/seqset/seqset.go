// Package seqset keeps which of a key's seqnums were seen, in as little memory as they are dense.
package seqset

import (
	"cmp"
	"iter"
	"slices"
)

// Span is the numbers From to To, both included.
type Span struct{ From, To int64 }

// Len is how many numbers they are.
func (s Span) Len() int64 { return s.To - s.From + 1 }

// Set is a set of numbers. The zero value is empty.
type Set struct {
	spans []Span // ascending, with at least one number between two
}

// Add puts a number in and reports whether it was not there yet. It is fast where numbers come in
// ascending order, or nearly.
func (s *Set) Add(n int64) bool {
	if last := len(s.spans) - 1; last >= 0 && n == s.spans[last].To+1 {
		s.spans[last].To = n
		return true
	}
	// The first span that does not end below n.
	i, _ := slices.BinarySearchFunc(s.spans, n, func(span Span, n int64) int { return cmp.Compare(span.To, n) })
	if i < len(s.spans) && s.spans[i].From <= n {
		return false
	}
	below := i > 0 && s.spans[i-1].To == n-1
	above := i < len(s.spans) && s.spans[i].From == n+1
	switch {
	case below && above:
		s.spans[i-1].To = s.spans[i].To
		s.spans = slices.Delete(s.spans, i, i+1)
	case below:
		s.spans[i-1].To = n
	case above:
		s.spans[i].From = n
	default:
		s.spans = slices.Insert(s.spans, i, Span{n, n})
	}
	return true
}

// Has reports whether a number is in it.
func (s *Set) Has(n int64) bool {
	i, _ := slices.BinarySearchFunc(s.spans, n, func(span Span, n int64) int { return cmp.Compare(span.To, n) })
	return i < len(s.spans) && s.spans[i].From <= n
}

// Min returns the lowest number, or false where there is none.
func (s *Set) Min() (int64, bool) {
	if len(s.spans) == 0 {
		return 0, false
	}
	return s.spans[0].From, true
}

// Count is how many numbers from from to to are in it.
func (s *Set) Count(from, to int64) (n int64) {
	for _, span := range s.spans {
		n += max(0, min(span.To, to)-max(span.From, from)+1)
	}
	return n
}

// Missing yields what of the numbers from from to to is in none of the sets, in ascending order.
func Missing(from, to int64, sets ...*Set) iter.Seq[Span] {
	var all []Span
	for _, s := range sets {
		all = append(all, s.spans...)
	}
	slices.SortFunc(all, func(a, b Span) int { return cmp.Compare(a.From, b.From) })
	return func(yield func(Span) bool) {
		next := from
		for _, span := range all {
			if span.From > to {
				break
			}
			if span.From > next && !yield(Span{next, span.From - 1}) {
				return
			}
			next = max(next, span.To+1)
		}
		if next <= to {
			yield(Span{next, to})
		}
	}
}
