package browser

import (
	"context"
	"fmt"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

const (
	// startLimit and pageLimit are far above what either takes, on a loaded machine too.
	startLimit = time.Minute
	pageLimit  = time.Minute
	// windowWidth and windowHeight are those of a laptop, in pixels.
	windowWidth, windowHeight = 1366, 900
)

// chromium is what the browser is called where it is installed.
func chromium(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatal("there is no Chromium in PATH: as root, apt-get install chromium")
	return ""
}

// startBrowser starts a browser without a window that ends with the test. What it starts, it
// ends by its process id. A browser that comes to its end before it shows anything says nothing of
// a page, so that it has three tries.
func startBrowser(t *testing.T) context.Context {
	t.Helper()
	path := chromium(t)
	for try := 1; ; try++ {
		browser, stop, err := tryBrowser(path)
		if err == nil {
			t.Cleanup(stop)
			return browser
		}
		stop()
		if try == 3 {
			t.Fatalf("start Chromium, %d times: %v", try, err)
		}
		t.Logf("start Chromium, once more: %v", err)
	}
}

func tryBrowser(path string) (browser context.Context, stop func(), err error) {
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.WindowSize(windowWidth, windowHeight),
		// Its sandbox does not work for root; the pages are our own. Without a sandbox there is no
		// need for a process that forks the others.
		chromedp.NoSandbox, chromedp.Flag("no-zygote", true))
	allocator, release := chromedp.NewExecAllocator(context.Background(), options...)
	browser, end := chromedp.NewContext(allocator)
	// A context with a deadline would end the browser later.
	late := time.AfterFunc(startLimit, end)
	defer late.Stop()
	if err = chromedp.Do(browser, chromedp.Navigate("about:blank")); err != nil {
		err = fmt.Errorf("within %v: %w", startLimit, err)
	}
	return browser, func() { end(); release() }, err
}

// noise is what a page asked for and complained of while it was loaded.
type noise struct {
	mu         sync.Mutex // guards what follows
	requests   []string   // URLs
	complaints []string
}

func (n *noise) note(event any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		n.requests = append(n.requests, e.Request.URL)
	case *runtime.EventExceptionThrown:
		n.complaints = append(n.complaints, "exception: "+e.ExceptionDetails.Text)
	case *runtime.EventConsoleAPICalled:
		for _, arg := range e.Args {
			n.complaints = append(n.complaints, string(e.Type)+": "+string(arg.Value))
		}
	case *log.EventEntryAdded:
		n.complaints = append(n.complaints, string(e.Entry.Level)+": "+e.Entry.Text)
	}
}

// open loads a URL in a tab of its own and evaluates a script that returns what the page shows.
func open(t *testing.T, browser context.Context, url, script string) (page, *noise) {
	t.Helper()
	tab, closeTab := chromedp.NewContext(browser)
	defer closeTab()
	n := new(noise)
	if err := chromedp.Listen(tab, n.note); err != nil {
		t.Fatalf("open a tab: %v", err)
	}
	limited, cancel := context.WithTimeout(tab, pageLimit)
	defer cancel()
	if err := chromedp.Do(limited, chromedp.Navigate(url)); err != nil {
		t.Fatalf("open %s: %v", url, err)
	}
	shows, err := chromedp.Run(limited, chromedp.Evaluate[page](script))
	if err != nil {
		t.Fatalf("look at %s: %v", url, err)
	}
	return shows, n
}
