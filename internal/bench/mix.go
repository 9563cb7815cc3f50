package bench

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"
)

// mixKeys is how many keys realistic events have: three types of each of 150 sources.
const mixKeys = 450

// mixEvent makes an event as a web site sends them: 60 % track, 30 % identify, 10 % page.
func mixEvent(r *rand.Rand, run string) (event, error) {
	typ := "track"
	switch n := r.IntN(10); {
	case n >= 9:
		typ = "page"
	case n >= 6:
		typ = "identify"
	}
	body, err := json.Marshal(mixBody(r, typ))
	if err != nil {
		return event{}, fmt.Errorf("encode a body: %w", err)
	}
	source := "/bench/" + run + "/site/" + strconv.Itoa(r.IntN(mixKeys/3))
	return encodeAs(source, "analytics."+typ, body, "application/json")
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func mixBody(r *rand.Rand, typ string) map[string]any {
	id := func(bytes int) string {
		out := make([]byte, bytes)
		for i := range out {
			out[i] = "0123456789abcdef"[r.IntN(16)]
		}
		return string(out)
	}
	user := "user-" + strconv.Itoa(r.IntN(100_000))
	path := pick(r, "/", "/pricing", "/docs/getting-started", "/blog/2026/durable-events", "/account/settings", "/checkout")
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(r.Int64N(int64(300 * 24 * time.Hour))))
	body := map[string]any{
		"messageId": id(32), "anonymousId": id(32), "userId": user, "timestamp": at.Format(time.RFC3339Nano),
		"context": map[string]any{
			"ip": fmt.Sprintf("10.%d.%d.%d", r.IntN(256), r.IntN(256), r.IntN(256)), "locale": pick(r, "en-US", "de-DE", "fr-FR", "ja-JP"),
			"userAgent": pick(r,
				"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
				"Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148"),
			"library": map[string]any{"name": "analytics.js", "version": "2." + strconv.Itoa(r.IntN(40))},
		},
	}
	switch typ {
	case "track":
		properties := map[string]any{"path": path, "currency": "EUR", "value": float64(r.IntN(50_000)) / 100}
		for range r.IntN(6) { // the long tail of sizes
			properties["attribute_"+id(4)] = id(8 + r.IntN(120))
		}
		body["event"], body["properties"] = pick(r, "Product Viewed", "Product Added", "Checkout Started", "Order Completed", "Search Performed"), properties
	case "identify":
		body["traits"] = map[string]any{
			"email": user + "@example.com", "name": pick(r, "Ada", "Grace", "Edsger", "Barbara") + " " + id(8),
			"plan": pick(r, "free", "team", "enterprise"), "createdAt": at.AddDate(-1, 0, 0).Format(time.RFC3339), "logins": r.IntN(5000),
		}
	default:
		body["properties"] = map[string]any{
			"path": path, "url": "https://shop.example.com" + path, "title": "Shop | " + path, "referrer": "https://search.example.com/?q=" + id(12),
		}
	}
	return body
}
