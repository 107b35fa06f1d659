package runbook

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestProbesAskWhatTheyAreFor(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprint(w, "all is ok")
	}))
	defer web.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, c := range []struct {
		step Step
		want string // of the error; empty: it holds
	}{
		{Step{Kind: TCP, Address: web.Listener.Addr().String()}, ""},
		{Step{Kind: TCP, Address: closed.Addr().String()}, "refused"},
		{Step{Kind: HTTP, URL: web.URL + "/health", Status: 200, Contains: "ok"}, ""},
		{Step{Kind: HTTP, URL: web.URL + "/health", Status: 200, Contains: "fine"}, "does not contain"},
		{Step{Kind: HTTP, URL: web.URL + "/else", Status: 200}, "503"},
		{Step{Kind: HTTP, URL: web.URL + "/else", Status: 503}, ""},
		{Step{Kind: Program, Argv: []string{"/bin/true"}}, ""},
		{Step{Kind: Program, Argv: []string{"/bin/false"}}, "exit status 1"},
		{Step{Kind: Program, Argv: []string{"/nonexistent/x"}}, "no such file"},
		{Step{Kind: Start}, "cannot be asked"},
	} {
		_, err := Probe(context.Background(), c.step, nil)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %q", c.step.Kind, c.step.object(), err, c.want)
		}
	}
}

// TestAProgramIsKilledWithItsChildren: the shell's child holds the output open and
// would go on for an hour.
func TestAProgramIsKilledWithItsChildren(t *testing.T) {
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte("#!/bin/sh\necho begun $1 $AFTERIMAGE_MODE\nsleep 3600 &\nwait\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		out, err := Execute(ctx, []string{file, "a b;c"}, []string{"AFTERIMAGE_MODE=test"})
		if err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("killed: %q, %v", out, err)
		}
	}()
	time.AfterFunc(50*time.Millisecond, func() { cancel(context.DeadlineExceeded) })
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it was not killed")
	}
	if out, err := Execute(context.Background(), []string{"/bin/sh", "-c", "yes | head -c 200000"}, nil); err != nil || len(out) != keptOutput {
		t.Errorf("%d bytes were kept, %v", len(out), err)
	}
	if out, err := Execute(context.Background(), []string{"/usr/bin/env"}, []string{"AFTERIMAGE_MODE=test"}); err != nil || strings.Contains(out, "HOME=") || !strings.Contains(out, "AFTERIMAGE_MODE=test") {
		t.Errorf("its environment is %q, %v", out, err)
	}
}
