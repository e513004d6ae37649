package server_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/dmfuse/dmfuse/control/server"
)

// lockedBuffer takes the log while requests run.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Len()
}

// TestOddBodies: more than one value is refused as a whole, and a name of a
// megabyte neither makes a device nor fills the log.
func TestOddBodies(t *testing.T) {
	var out lockedBuffer
	log := logrus.New()
	log.SetOutput(&out)
	b := newBench(t, func(o *server.Options) { o.Log = log })
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", b.socket)
	}}
	defer tr.CloseIdleConnections()
	for text, want := range map[string]string{
		`{"name":"a"} {"name":"b"}`:                           "more after the first value",
		`{"name":"a"}]`:                                       "not valid",
		`{"name":"` + strings.Repeat("n", 1<<20) + `"}`:       "at most 127",
		`{"name":"a","` + strings.Repeat("f", 1<<20) + `":1}`: "unknown field",
	} {
		req, err := http.NewRequestWithContext(b.ctx, http.MethodPost, "http://d/v1/device/create", strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusBadRequest || !bytes.Contains(answer, []byte(want)) {
			t.Errorf("%.40s: %d %.100s %v", text, resp.StatusCode, answer, err)
		}
	}
	if n := len(b.m.Devices()); n != 0 {
		t.Errorf("%d devices were made", n)
	}
	if n := out.Len(); n == 0 || n > 20_000 {
		t.Errorf("the log has %d bytes", n)
	}
}

// TestOddRequests: requests that are JSON and no use are refused as invalid,
// and an apply of nothing answers an empty list.
func TestOddRequests(t *testing.T) {
	b := newBench(t, nil)
	b.make("a", line(0, 8, "error"))
	b.make("b", line(0, 8, "error"))
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", b.socket)
	}}
	defer tr.CloseIdleConnections()
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{http.MethodPost, "device/discard?name=a", `{"length_bytes":-2}`, http.StatusBadRequest, `"code":"invalid"`},
		{http.MethodGet, "device?name=a&name=b", "", http.StatusBadRequest, `\"name\" is given 2 times`},
		{http.MethodGet, "device/table?name=a&inactive=0&inactive=1", "", http.StatusBadRequest, `\"inactive\" is given 2 times`},
		{http.MethodPost, "device/flush?minor=0&minor=1", "{}", http.StatusBadRequest, `"code":"invalid"`},
		{http.MethodPost, "apply", `{"steps":[]}`, http.StatusOK, `{"results":[]}`},
		{http.MethodPost, "apply", `{}`, http.StatusOK, `{"results":[]}`},
	} {
		req, err := http.NewRequestWithContext(b.ctx, c.method, "http://d/v1/"+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || !bytes.Contains(answer, []byte(c.want)) {
			t.Errorf("%s %s: %d %s %v", c.path, c.body, resp.StatusCode, answer, err)
		}
	}
}
