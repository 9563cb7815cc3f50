package pipeline

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed sql/find_letters.sql
var findLettersSQL string

// Bounds of one step of a walk, so that its statements take well under a second: how many
// letters are looked at at most, how many are acted on, and how many bytes of events those have.
const (
	walkPage  = 10_000
	walkStep  = 500
	walkBytes = 16 << 20
)

// LetterWalk goes through the dead letters that match a filter, the oldest failure first, in
// steps that are bounded each: a step may find nothing although there is more, and Done tells.
// What fails during the walk is not part of it, so that it ends whatever it does with what
// it finds. It belongs to one goroutine.
type LetterWalk struct {
	store  *Store
	filter LetterFilter
	behind letterKey
	done   bool
	page   int // letters that the next step looks at
	// Seen counts the letters looked at, whether they matched or not.
	Seen int64
}

// letterKey is a dead letter as a walk saw it: one that failed again is another.
type letterKey struct {
	failedAt        time.Time
	position, token int64
	sink            string
}

// foundLetter is what a walk needs to know of a letter that matches.
type foundLetter struct {
	letterKey
	lane        int
	source, typ string
	bytes       int64
}

// WalkLetters begins a walk at the oldest dead letter that may match.
func (s *Store) WalkLetters(ctx context.Context, filter LetterFilter) (*LetterWalk, error) {
	if err := filter.Validate(); err != nil {
		return nil, err
	}
	now, err := s.Now(ctx)
	if err != nil {
		return nil, err
	}
	if filter.Until.IsZero() || filter.Until.After(now) {
		filter.Until = now
	}
	return &LetterWalk{store: s, filter: filter, behind: letterKey{failedAt: time.Unix(0, 0)}}, nil
}

// Now is Postgres's clock.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	var now time.Time
	if err := s.pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return time.Time{}, fmt.Errorf("read Postgres's clock: %w", err)
	}
	return now.UTC(), nil
}

// Done reports that the walk has seen all.
func (w *LetterWalk) Done() bool { return w.done }

// next looks at one page and returns up to limit of the letters that match filter. The walk
// goes on behind what was returned once the caller has done its part: advance.
func (w *LetterWalk) next(ctx context.Context, filter LetterFilter, limit int) (found []foundLetter, advance func(), err error) {
	var since *time.Time
	if !filter.Since.IsZero() {
		since = &filter.Since
	}
	limit = min(limit, walkStep)
	size := max(w.page, limit)
	args := append([]any{since, filter.Until, w.behind.failedAt, w.behind.position, w.behind.token, w.behind.sink, size, limit}, filter.args()...)
	var last letterKey
	seen := int64(0)
	err = w.store.ordered(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, findLettersSQL, args...)
		if err != nil {
			return err
		}
		found = nil
		var l foundLetter
		var lane *int16
		var source, typ *string
		_, err = pgx.ForEachRow(rows, []any{&l.failedAt, &l.position, &l.token, &l.sink, &lane, &source, &typ, &l.bytes}, func() error {
			if lane == nil {
				last, seen = l.letterKey, l.bytes
				return nil
			}
			l.lane, l.source, l.typ = int(*lane), *source, *typ
			found = append(found, l)
			return nil
		})
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("look for dead letters: %w", err)
	}
	if kept := withinBytes(found, walkBytes); len(kept) < len(found) || len(kept) == limit {
		// There may be more in the page, which is looked at again: a smaller one will do.
		return kept, func() {
			w.behind, w.page = kept[len(kept)-1].letterKey, size/2
			w.Seen += int64(len(kept))
		}, nil
	}
	return found, func() {
		if seen > 0 {
			w.behind = last
		}
		w.done, w.page = seen < int64(size), min(2*size, walkPage)
		w.Seen += seen
	}, nil
}

// withinBytes returns the first letters whose events have so many bytes, one at least.
func withinBytes(found []foundLetter, bytes int64) []foundLetter {
	for i, l := range found {
		if bytes -= l.bytes; bytes < 0 && i > 0 {
			return found[:i]
		}
	}
	return found
}

// ordered runs read-only statements that are to walk along an index. Statistics of an empty
// table make reading all and sorting it look cheaper.
func (s *Store) ordered(ctx context.Context, read func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('enable_bitmapscan', 'off', true), set_config('enable_sort', 'off', true)`); err != nil {
			return err
		}
		return read(tx)
	})
}

// keyArgs are letters as columns: failed_at, position, token, sink.
func keyArgs(found []foundLetter) (failed []time.Time, positions, tokens []int64, sinks []string) {
	for _, l := range found {
		failed, positions = append(failed, l.failedAt), append(positions, l.position)
		tokens, sinks = append(tokens, l.token), append(sinks, l.sink)
	}
	return failed, positions, tokens, sinks
}

// Count looks at one page and returns how many letters in it match, up to limit.
func (w *LetterWalk) Count(ctx context.Context, limit int) (int, error) {
	found, advance, err := w.next(ctx, w.filter, limit)
	if err != nil {
		return 0, err
	}
	advance()
	return len(found), nil
}

// List looks at one page and returns the letters in it that match, up to limit; withEvents says
// whether their events too.
func (w *LetterWalk) List(ctx context.Context, limit int, withEvents bool) ([]DeadLetter, error) {
	found, advance, err := w.next(ctx, w.filter, limit)
	if err != nil {
		return nil, err
	}
	letters, err := w.store.readLetters(ctx, found, withEvents)
	if err != nil {
		return nil, err
	}
	advance()
	return letters, nil
}

// conflicts is how often a step is repeated that Postgres ended because another transaction
// locked the same rows in another order.
const conflicts = 3

// exec runs a statement that is a transaction of its own.
func (s *Store) exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	for range conflicts {
		tag, err = s.pool.Exec(ctx, sql, append([]any{planAnew}, args...)...)
		if !isDeadlock(err) {
			break
		}
	}
	return tag, err
}

func isDeadlock(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "40P01"
}
