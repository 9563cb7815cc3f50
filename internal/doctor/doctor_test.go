package doctor

import (
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

func TestClock(t *testing.T) {
	before := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	after := before.Add(100 * time.Millisecond)
	for _, c := range []struct {
		theirs time.Time
		want   Level
	}{
		{before.Add(50 * time.Millisecond), OK},
		{before.Add(-900 * time.Millisecond), OK},  // a time in whole seconds
		{before.Add(-1900 * time.Millisecond), OK}, // and a second's patience
		{before.Add(-2100 * time.Millisecond), Warn},
		{after.Add(1100 * time.Millisecond), Warn},
		{after.Add(5*time.Minute + time.Second), Fail},
		{before.Add(-5*time.Minute - 2*time.Second), Fail},
	} {
		p := &patient{server: "x"}
		p.clock(c.theirs, before, after, time.Second, 10*time.Minute)
		if f := p.findings[0]; f.Level != c.want || (f.Remedy == "") != (c.want == OK) {
			t.Errorf("%s: %+v, want %s", c.theirs.Sub(before), f, c.want)
		}
	}
}

func TestSpace(t *testing.T) {
	for used, want := range map[uint64]Level{0: OK, 850: OK, 860: Warn, 970: Warn, 980: Fail, 1000: Fail} {
		p := &patient{}
		p.space("storage", "the account", "raise it", used, 1000)
		if p.findings[0].Level != want {
			t.Errorf("%d of 1000: %+v, want %s", used, p.findings[0], want)
		}
	}
	for n, want := range map[uint64]string{5: "5 bytes", 1536: "1.5 KiB", 8 << 30: "8.0 GiB", 1 << 62: "4096.0 PiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// A disk is full when what is left may be taken by Postgres's log at any moment, however large it is.
func TestRoom(t *testing.T) {
	const wal = 2 << 30
	for _, c := range []struct {
		free, total uint64
		want        Level
	}{
		{200 << 30, 250 << 30, OK},
		{5 << 30, 250 << 30, Warn}, // 98 % used, and room for more than two checkpoints' log
		{wal, 250 << 30, Warn},
		{wal - 1, 250 << 30, Fail},
		{wal - 1, 4 << 30, Fail}, // half of it is free
		{0, 250 << 30, Fail},
		{10 << 30, 8 << 30, OK}, // nothing that statfs may say makes sizes wrap
	} {
		d := &database{}
		d.room("/data", c.free, c.total, wal)
		if f := d.findings[0]; f.Level != c.want || (f.Remedy == "") != (c.want == OK) {
			t.Errorf("%d of %d free: %+v, want %s", c.free, c.total, f, c.want)
		}
	}
}

func TestVersion(t *testing.T) {
	for text, old := range map[string]bool{"2.9.1": true, "2.13.0": true, "2.14.0": false, "2.15.2": false, "3.0.0-beta": false} {
		if v, ok := parseVersion(text); !ok || v.before(oldestNATS) != old {
			t.Errorf("%s: %v, %v", text, v, ok)
		}
	}
	if _, ok := parseVersion("devel"); ok {
		t.Error("devel is a version")
	}
}

// A rule is bad only if it is enabled, may be about the archive's objects, and deletes or hides them.
func TestJudgeRule(t *testing.T) {
	deletes := func(change func(*types.LifecycleRule)) types.LifecycleRule {
		r := types.LifecycleRule{Status: types.ExpirationStatusEnabled, Expiration: &types.LifecycleExpiration{Days: aws.Int32(30)}}
		if change != nil {
			change(&r)
		}
		return r
	}
	under := func(prefix string) func(*types.LifecycleRule) {
		return func(r *types.LifecycleRule) { r.Filter = &types.LifecycleRuleFilter{Prefix: aws.String(prefix)} }
	}
	for name, c := range map[string]struct {
		rule types.LifecycleRule
		want Level
	}{
		"of all":          {deletes(nil), Fail},
		"of the archive":  {deletes(under("prod/")), Fail},
		"of one lane":     {deletes(under("prod/lane=03/")), Fail},
		"of its first":    {deletes(under("p")), Fail},
		"of others":       {deletes(under("logs/")), OK},
		"of a likely one": {deletes(under("prod2/")), OK},
		"by its old form": {deletes(func(r *types.LifecycleRule) {
			//lint:ignore SA1019 servers still answer with it
			r.Prefix = aws.String("logs/")
		}), OK},
		"disabled": {deletes(func(r *types.LifecycleRule) { r.Status = types.ExpirationStatusDisabled }), OK},
		"of tagged ones": {deletes(func(r *types.LifecycleRule) {
			r.Filter = &types.LifecycleRuleFilter{Tag: &types.Tag{Key: aws.String("a"), Value: aws.String("b")}}
		}), OK},
		"of tagged ones too": {deletes(func(r *types.LifecycleRule) {
			r.Filter = &types.LifecycleRuleFilter{And: &types.LifecycleRuleAndOperator{Prefix: aws.String("prod/"), Tags: []types.Tag{{}}}}
		}), OK},
		"of large ones": {deletes(func(r *types.LifecycleRule) {
			r.Filter = &types.LifecycleRuleFilter{And: &types.LifecycleRuleAndOperator{Prefix: aws.String("prod/"), ObjectSizeGreaterThan: aws.Int64(1)}}
		}), Fail},
		"from a day on": {deletes(func(r *types.LifecycleRule) {
			r.Expiration = &types.LifecycleExpiration{Date: aws.Time(time.Now())}
		}), Fail},
		"of delete markers": {deletes(func(r *types.LifecycleRule) {
			r.Expiration = &types.LifecycleExpiration{ExpiredObjectDeleteMarker: aws.Bool(true)}
		}), OK},
		"into a cellar": {deletes(func(r *types.LifecycleRule) {
			r.Expiration, r.Transitions = nil, []types.Transition{{Days: aws.Int32(90), StorageClass: types.TransitionStorageClassDeepArchive}}
		}), Warn},
		"into a cheaper shelf": {deletes(func(r *types.LifecycleRule) {
			r.Expiration, r.Transitions = nil, []types.Transition{{Days: aws.Int32(90), StorageClass: types.TransitionStorageClassStandardIa}}
		}), OK},
	} {
		if level, what := judgeRule(c.rule, "prod/"); level != c.want || (what == "") != (c.want == OK) {
			t.Errorf("%s: %s, %q; want %s", name, level, what, c.want)
		}
	}
}

func TestLocal(t *testing.T) {
	for host, want := range map[string]bool{"/run/postgresql": true, "localhost": true, "127.0.0.1": true, "::1": true, "10.0.0.1": false, "db.example.com": false} {
		if local(host) != want {
			t.Errorf("%s: %v", host, !want)
		}
	}
}
