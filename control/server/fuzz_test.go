package server_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/dmfuse/dmfuse/control"
)

// FuzzRequest: any request is answered with a status of the API and a JSON
// body, or with the error of the HTTP server; the daemon goes on, and ends when
// it is told to.
func FuzzRequest(f *testing.F) {
	for _, x := range [][3]string{
		{"POST", "apply", `{"steps":[{"op":"create","key":{"name":"x"},"lines":[{"length":8,"type":"zero"}]},{"op":"suspend","key":{"name":"a"}},{"op":"remove","key":{"name":"a"}}]}`},
		{"POST", "device/create", `{"name":"b","lines":[{"length":8,"type":"linear","args":["/disk/1","0"]}]}`},
		{"POST", "device/message?name=a", `{"sector":0,"words":["@stats_list"]}`},
		{"POST", "device/discard?name=a", `{"offset_bytes":0,"length_bytes":512}`},
		{"POST", "device/faults?name=a", `{"rules":["read errno=EIO"]}`},
		{"GET", "devices?tables=1", ""}, {"GET", "device/status?name=a&noflush=1", ""}, {"GET", "io", ""}, {"POST", "remove-all", "{}"},
		{"GET", "device?minor=0", ""}, {"GET", "device?uuid=%zz", ""},
	} {
		f.Add(x[0], x[1], x[2])
	}
	f.Fuzz(func(t *testing.T, method, path, body string) {
		if strings.HasPrefix(path, "events") || strings.HasPrefix(path, "shutdown") || strings.Contains(path, "wait") {
			return // they last
		}
		b := newBench(t, nil)
		b.make("a", line(0, 8, "zero"))
		tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", b.socket)
		}}
		defer tr.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(b.ctx, time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, "http://d/v1/"+path, strings.NewReader(body))
		if err != nil {
			return
		}
		if resp, err := tr.RoundTrip(req); err == nil {
			_, err := io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusInternalServerError && err == nil && !strings.Contains(path, "message") {
				t.Logf("%s %s: %d", method, path, resp.StatusCode)
			}
		}
		if _, err := b.c.Version(b.ctx); err != nil {
			t.Fatalf("after %s %s: %v", method, path, err)
		}
		b.c.Do(b.ctx, control.Step{Op: control.OpResume, Key: control.ByName("a")})
	})
}
