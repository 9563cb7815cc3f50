// Package browser opens the report of `waybill bench` in a Chromium and looks at what it
// shows. It is a module of its own, so that only who runs `make test-browser` downloads what
// drives a browser.
package browser
