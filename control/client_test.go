package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
)

// TestAsksAgain: who waits for something has the answer of the daemon that goes
// on in place of one that died. What changes something is not done twice.
func TestAsksAgain(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan string, 1000)
	const deaths = 3
	go func() {
		for i := 0; ; i++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r, err := http.ReadRequest(bufio.NewReader(conn))
			if err == nil {
				asked <- r.Method
			}
			if i >= deaths {
				fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"event_nr\":  7}")
			}
			conn.Close()
		}
	}()
	c := NewClient(socket)
	defer c.Close()
	if n, err := c.Wait(t.Context(), ByName("a"), 6); n != 7 || err != nil || len(asked) != deaths+1 {
		t.Errorf("%d, %v after %d questions", n, err, len(asked))
	}
	for len(asked) > 0 {
		<-asked
	}
	l.Close()
	gone := NewClient(socket)
	_, err = gone.Version(context.Background())
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeNoDaemon {
		t.Errorf("without a daemon: %v", err)
	}
}

// TestChangesOnce: a change whose answer was cut off may have been made.
func TestChangesOnce(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan string, 1000)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				asked <- r.Method
			}
			conn.Close()
		}
	}()
	c := NewClient(socket)
	defer c.Close()
	_, err = c.RemoveAll(t.Context())
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeNoDaemon || len(asked) != 1 {
		t.Errorf("%v after %d requests", err, len(asked))
	}
	for _, op := range []string{OpLoad, OpCreate, OpRemove, OpRename, OpSuspend, OpResume} {
		before, again := len(asked), op == OpSuspend || op == OpResume
		_, err = c.Do(t.Context(), Step{Op: op, Key: ByName("x")})
		if n := len(asked) - before; !errors.As(err, &e) || e.Code != CodeNoDaemon || (n > 1) != again {
			t.Errorf("%s: %v after %d requests", op, err, n)
		}
	}
}

// TestReplaced rests on how encoding/json writes what is no UTF-8.
func TestReplaced(t *testing.T) {
	for name, want := range map[string]bool{
		"":              false,
		"plain":         false,
		"\u00fcn\u00ef": false,
		"\ufffd":        false, // somebody's own
		`\ufffd`:        false, // six characters
		`\\ufffd`:       false,
		"\xff":          true,
		"a\\\xff":       true,
		"\"\n<\xc3(":    true,
		"\"\n<&>\u2028": false,
	} {
		b, err := json.Marshal(Step{Key: ByName(name)})
		if err != nil {
			t.Fatal(err)
		}
		if got := replaced(b); got != want {
			t.Errorf("%q as %s: %v, want %v", name, b, got, want)
		}
	}
}
