package replay

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// saveTimeout bounds one look at the state.
const saveTimeout = 5 * time.Second

// order is what was asked for under a name, as it was asked.
type order struct {
	Sink   string `json:"sink"`
	Target string `json:"target"`
	From   string `json:"from"`
	Since  string `json:"since"`
	Until  string `json:"until"`
	Late   string `json:"late"`
	Lanes  []int  `json:"lanes"`
	Source string `json:"source"`
	Type   string `json:"type"`
}

func (c Config) order() order {
	return order{
		Sink: c.Sink.Name(), Target: c.Target, From: c.From, Since: c.Since.String(), Until: c.Until.String(),
		Late: c.Late.String(), Lanes: append([]int{}, c.Lanes...), Source: c.Source, Type: c.Type,
	}
}

// differs says what was asked for otherwise, first.
func (o order) differs(other order) string {
	a, b := reflect.ValueOf(o), reflect.ValueOf(other)
	for i := range a.NumField() {
		x, y := a.Field(i).Interface(), b.Field(i).Interface()
		if !reflect.DeepEqual(x, y) {
			return fmt.Sprintf("%s, and not %s", asked(a.Type().Field(i).Tag.Get("json"), x), asked("", y))
		}
	}
	return ""
}

// asked is a flag, if it is named, and its value.
func asked(field string, value any) string {
	text := strings.Trim(strings.ReplaceAll(fmt.Sprint(value), " ", ","), "[]")
	switch {
	case field == "" && text == "":
		return "without"
	case field == "":
		return text
	case field == "lanes":
		field = "lane"
	case field == "target":
		return "the target " + text
	}
	if text == "" {
		return "no --" + field
	}
	return "--" + field + " " + text
}

// state is what is kept of a replay.
type state struct {
	Order    order     `json:"order"`
	Span     span      `json:"span"`
	Position position  `json:"position"`
	Counts   Counts    `json:"counts"`
	Begun    time.Time `json:"begun"`
	Saved    time.Time `json:"saved"`
	Done     bool      `json:"done"`
	// Run tells a process that runs the replay from another.
	Run string `json:"run"`
}

// keeper stores the state of one replay. It is safe for concurrent use.
type keeper struct {
	states *pipeline.ReplayStates
	name   string
	run    string

	mu       sync.Mutex // guards revision
	revision uint64
}

// openKeeper returns the state under a name, or nil where there is none.
func openKeeper(ctx context.Context, c Config) (*keeper, *state, error) {
	states, err := c.Queue.ReplayStates(ctx)
	if err != nil {
		return nil, nil, err
	}
	k := &keeper{states: states, name: c.Name, run: rand.Text()}
	before, revision, err := k.load(ctx)
	k.revision = revision
	return k, before, err
}

// load returns the state as it is, and its revision; nil and 0 where there is none.
func (k *keeper) load(ctx context.Context) (*state, uint64, error) {
	data, revision, err := k.states.Load(ctx, k.name)
	if err != nil || revision == 0 {
		return nil, 0, err
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, 0, fmt.Errorf("state of replay %s: %w; use another name", k.name, err)
	}
	return &s, revision, nil
}

// takeOver makes the replay this process's, and returns how far the one before had come, which is told so
// when it next stores its state. before is what openKeeper found.
func (k *keeper) takeOver(ctx context.Context, before state) (state, error) {
	for {
		err := k.save(ctx, before)
		if !errors.Is(err, pipeline.ErrReplayTaken) || ctx.Err() != nil {
			return before, err
		}
		// It was stored between the look and this: look again.
		now, revision, err := k.load(ctx)
		if err != nil {
			return before, err
		}
		k.revision = revision
		if now == nil { // deleted
			continue
		}
		if before = *now; before.Done {
			return before, nil
		}
	}
}

// save stores the state. An error other than pipeline.ErrReplayTaken may pass.
func (k *keeper) save(ctx context.Context, s state) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), saveTimeout)
	defer cancel()
	s.Run, s.Saved = k.run, time.Now().UTC()
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the state of replay %s: %w", k.name, err)
	}
	revision, err := k.states.Save(ctx, k.name, data, k.revision)
	if errors.Is(err, pipeline.ErrReplayTaken) {
		// Our own, if its answer was lost.
		now, at, loadErr := k.load(ctx)
		if loadErr != nil || now == nil || now.Run != k.run {
			return errors.Join(err, loadErr)
		}
		revision, err = k.states.Save(ctx, k.name, data, at)
	}
	if err == nil {
		k.revision = revision
	}
	return err
}
